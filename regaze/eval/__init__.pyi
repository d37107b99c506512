from .benchmarks.common.base import Benchmark as Benchmark
from .benchmarks.common.base import Item as Item
from .benchmarks.pope.benchmark import Pope as Pope
from .run.runner import evaluate as evaluate
from .run.runner import evaluate_benchmark as evaluate_benchmark
from .run.tasks import EvalConfig as EvalConfig
from .run.tasks import EvalTask as EvalTask
from .tuning.tuning import Tuning as Tuning
