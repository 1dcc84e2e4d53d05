"""A project's files, to load and apply."""

from pathlib import Path

from headway.config.load import ConfigurationFile, load

DEPLOYMENTS = """\
deployments:
  main: {provider: openai, base_url: http://127.0.0.1:9/v1, model: large, api_key: env:MAIN_KEY}
  spare: {provider: openai, base_url: http://127.0.0.1:9/v1, model: small}
"""


class Project:
    """A folder with a headway.yaml whose application is support."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "headway.yaml"

    def write(
        self,
        prompt: str = "Be brief.",
        *,
        keys: str = "",
        release: str = "",
        deployments: str = DEPLOYMENTS,
        more: str = "",
    ) -> ConfigurationFile:
        """Write the files with this prompt and further keys of the application, of its release, of the file."""
        (self.folder / "prompt.j2").write_text(prompt)
        self.file.write_text(
            f"{deployments}applications:\n  support:\n"
            f"    release: {{deployment: main, prompt: prompt.j2{release}}}\n{keys}{more}"
        )
        return load(self.file)
