from .base import Judge as Judge
from .base import require_judge as require_judge
from .http import HttpJudge as HttpJudge
from .local import ModelJudge as ModelJudge
from .verdicts import RecordedJudge as RecordedJudge
from .verdicts import Verdicts as Verdicts
