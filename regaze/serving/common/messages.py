"""What the scheduler and the process of the model tell each other.

Attributes beside those that vLLM's messages have.
"""

#: Of the model's output: names of requests whose methods failed.
FAILED = "regaze_failed"
#: Of the model's output: names of requests whose last rows ran without the others of their group.
AGAIN = "regaze_again"
#: Of the scheduler's output: the answers of recorded requests that have ended, by their names.
ANSWERS = "regaze_answers"
