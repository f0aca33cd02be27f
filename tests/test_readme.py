"""What the README says can be typed as it stands: commands parse, files and names exist."""

import ast
import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

import latentdiff
from latentdiff.cli import app
from latentdiff.config import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    command.strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    for command in line.split("&&")
]
(SNIPPET,) = [block for language, block in BLOCKS if language == "python"]


def parse(arguments: list[str]) -> None:
    """Parse a command line down to its verb, and run nothing."""
    command, name = get_command(app), "latentdiff"
    while True:
        context = command.make_context(name, list(arguments), resilient_parsing=False)
        if not hasattr(command, "commands"):
            return
        # A group keeps what follows its own options for the verb.
        name, *arguments = [*context._protected_args, *context.args]
        command = command.commands[name]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("latentdiff ")])
def test_commands_parse(command: str) -> None:
    parse(shlex.split(command)[1:])


def test_a_wrong_command_would_not_parse() -> None:
    for arguments in (["generate", "a dog", "--durations", "3"], ["data", "scan"]):
        with pytest.raises(typer.TyperException):
            parse(arguments)
    with pytest.raises(KeyError):
        parse(["generat", "a dog"])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("accelerate launch ")])
def test_training_commands_name_configurations_and_keys_that_exist(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    _, _, script, config, *overrides = shlex.split(command)
    assert Path(script).is_file()
    load_config(Path(config), overrides)


def test_every_other_command_is_a_known_tool() -> None:
    tools = {"latentdiff", "accelerate", "tensorboard", "python3", ".", "pip", "pytest"}
    assert {shlex.split(command)[0] for command in COMMANDS} <= tools


def test_setup_is_two_commands() -> None:
    _, _, after = README.partition("<!-- setup:")
    setup = re.search(r"```bash\n(.*?)```", after, re.DOTALL)
    assert setup and len(setup[1].splitlines()) == 2
    first, second = setup[1].splitlines()
    assert first.endswith('latentdiff generate "dog barking"') and second.endswith("pytest -n 2")


def test_python_snippet_uses_the_public_surface() -> None:
    tree = ast.parse(SNIPPET)
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "latentdiff"
        for alias in node.names
    ]
    assert names and set(names) <= set(latentdiff.__all__)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "pipe"]
    accepted = inspect.signature(latentdiff.TextToAudioPipeline.__call__).parameters
    assert {keyword.arg for keyword in call.keywords} <= set(accepted)


def test_links_lead_somewhere() -> None:
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            assert "://" in target or (ROOT / target).exists(), f"{document.name}: {target}"


def test_keys_named_in_the_text_exist() -> None:
    configs = {"sounds": ROOT / "configs/audio/vae.yaml", "pictures": ROOT / "configs/image/vae.yaml"}
    about_sounds, _, about_pictures = README.partition("\n## Pictures\n")
    for medium, text in (("sounds", about_sounds), ("pictures", about_pictures)):
        overrides = re.findall(r"`((?:train|optimizer|data)\.\w+=[^`\s]+)`", text)
        assert overrides, medium
        for override in overrides:
            load_config(configs[medium], [override])
