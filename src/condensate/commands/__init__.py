"""The commands of the program, one or two a file."""

from condensate.commands.base import Command
from condensate.commands.continual import CONTINUAL
from condensate.commands.evaluate import EVALUATE
from condensate.commands.experts import EXPERTS
from condensate.commands.plan import PLAN
from condensate.commands.privacy import PRIVACY
from condensate.commands.recipes import RECIPES, SHOW
from condensate.commands.report import REPORT
from condensate.commands.run import RUN
from condensate.commands.table import TABLE

COMMANDS = {
    "recipes": RECIPES,
    "show": SHOW,
    "plan": PLAN,
    "run": RUN,
    "experts": EXPERTS,
    "evaluate": EVALUATE,
    "continual": CONTINUAL,
    "privacy": PRIVACY,
    "table": TABLE,
    "report": REPORT,
}

__all__ = ["COMMANDS", "Command"]
