"""The command line: `flaxcle spec`, `equalize`, `verify` and `report` on checkpoints."""

from flaxcle.cli.main import main as main
