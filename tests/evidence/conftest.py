"""What the tests of evidence use."""

from tests.cli.conftest import cra as cra
from tests.evidence.fixtures import made_plain as made_plain
from tests.evidence.fixtures import made_signed as made_signed
from tests.evidence.fixtures import plain as plain
from tests.evidence.fixtures import signed as signed
from tests.evidence.fixtures import spans as spans
