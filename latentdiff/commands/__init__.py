"""What the verbs of the command line do; `latentdiff.cli` holds their signatures."""
