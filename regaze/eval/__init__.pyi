from .benchmarks.common.base import Benchmark as Benchmark
from .benchmarks.common.base import Item as Item
from .benchmarks.pope.benchmark import Pope as Pope
from .run.runner import Plan as Plan
from .run.runner import Task as Task
from .run.runner import evaluate as evaluate
