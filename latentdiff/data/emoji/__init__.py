"""The starter model's pictures: Noto Color Emoji, with their names in many wordings.

Drawn by Pillow from the font (`draw`), named by the CLDR names of the package `emoji` (`catalogue`), worded
(`captions`) and written as an ordinary folder of captioned pictures (`write`).
"""
