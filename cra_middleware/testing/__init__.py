"""For tests of governed code and of adapters: stand-ins, what was decided, and the contract of every adapter."""

from cra_middleware.policy_tests import read_case_file
from cra_middleware.testing.contract import ContractCase, adapter_contract
from cra_middleware.testing.decided import RecordedCalls, decide_case
from cra_middleware.testing.scenario import Mode, Outcome, Scripted, Subject, Task
from cra_middleware.testing.stand_ins import FailingSink, FrozenClock
from cra_middleware.trace.sinks.memory import MemorySink

__all__ = [
    "ContractCase",
    "FailingSink",
    "FrozenClock",
    "MemorySink",
    "Mode",
    "Outcome",
    "RecordedCalls",
    "Scripted",
    "Subject",
    "Task",
    "adapter_contract",
    "decide_case",
    "read_case_file",
]
