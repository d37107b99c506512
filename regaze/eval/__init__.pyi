from .benchmarks.common.base import Benchmark as Benchmark
from .benchmarks.common.base import Item as Item
from .benchmarks.pope.benchmark import Pope as Pope
from .run.runner import EvalConfig as EvalConfig
from .run.runner import EvalTask as EvalTask
from .run.runner import evaluate as evaluate
from .run.runner import evaluate_benchmark as evaluate_benchmark
