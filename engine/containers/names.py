"""Names of containers: what is allowed, what is made up when none was given, and who has which.

Rule: a name belongs to one container from before its document is written until after the document is gone.
"""

from __future__ import annotations

import os
import random
import re

from oci.errors import AlreadyExists, InvalidArgument, NotFound

_ALLOWED = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_HEX = re.compile(r"[0-9a-f]+")

_ADJECTIVES = (
    "able agile amber ample apt arctic azure blithe bold brave breezy bright brisk calm candid chipper civil "
    "clear clever cosy crisp curious dapper daring deft eager early earnest easy fair fast fine firm fleet "
    "fluent fond frank fresh gentle glad golden grand happy hardy hearty honest humble ideal jolly jovial keen "
    "kind lively loyal lucid lucky lunar mellow merry mighty mild modest neat nimble noble open patient placid "
    "plucky polite prime proud quick quiet rapid ready regal robust rosy sage serene sharp silent silver "
    "simple sleek smooth snug solar solid spry stable steady sturdy subtle sunny super sure swift tidy true "
    "trusty upbeat urban valiant vivid warm wise witty zesty"
)

_SURNAMES = (
    "abel agnesi ampere archimedes aryabhata avogadro banach bardeen bell bernoulli bhaskara bohr boole born "
    "bose brahe brahmagupta cantor carson cauchy cerf chandrasekhar church clarke codd copernicus coulomb cray "
    "curie dalton darwin davinci descartes dijkstra dirac easley edison einstein elion erdos euclid euler "
    "faraday fermat fermi feynman fibonacci fourier franklin galileo galois gauss germain goedel goldberg "
    "goodall gosling haber hamilton hamming hawking heisenberg hermite hertz hilbert hodgkin hopper hubble "
    "hypatia jackson joliot joule kalam keller kepler khayyam khorana kilby knuth kovalevskaya lagrange lamarr "
    "lamport laplace lavoisier leavitt leibniz lovelace lumiere mach maxwell mccarthy mcclintock meitner "
    "mendel mendeleev mirzakhani moore morse napier nash neumann newton nobel noether ohm pascal pasteur pauli "
    "payne perlman planck poincare ptolemy raman ramanujan ride riemann ritchie rubin russell sagan sammet "
    "shannon shaw tesla thompson torvalds turing villani volta watt wiles wing wu yalow"
)

ADJECTIVES = _ADJECTIVES.split()
SURNAMES = _SURNAMES.split()


def new_id() -> str:
    """A fresh 64-hex id whose first 12 digits are not all decimal, so that short ids never look like numbers."""
    while True:
        value = os.urandom(32).hex()
        if not value[:12].isdecimal():
            return value


def check_name(name: str) -> str:
    """``name`` without its leading slash; raises ``InvalidArgument`` in Docker's words."""
    bare = name.removeprefix("/")
    if not _ALLOWED.fullmatch(bare):
        raise InvalidArgument(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return bare


class Names:
    """The index from names and id prefixes to container ids."""

    def __init__(self) -> None:
        self._by_name: dict[str, str] = {}
        self._ids: set[str] = set()

    def reserve(self, name: str, container_id: str) -> None:
        """Give ``name`` to ``container_id``; raises ``AlreadyExists`` when another has it."""
        owner = self._by_name.get(name)
        if owner is not None and owner != container_id:
            raise AlreadyExists(
                f'Conflict. The container name "/{name}" is already in use by container "{owner}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )
        self._by_name[name] = container_id
        self._ids.add(container_id)

    def reserve_random(self, container_id: str) -> str:
        """Give a free made-up name to ``container_id``."""
        for attempt in range(64):
            name = f"{random.choice(ADJECTIVES)}_{random.choice(SURNAMES)}"  # noqa: S311 - a name, not a secret
            if attempt > 5:
                name += str(random.randrange(10 ** (attempt // 6)))  # noqa: S311 - a name, not a secret
            if name not in self._by_name:
                self.reserve(name, container_id)
                return name
        self.reserve(container_id[:12], container_id)
        return container_id[:12]

    def release(self, name: str, container_id: str) -> None:
        """Take ``name`` back if ``container_id`` has it."""
        if self._by_name.get(name) == container_id:
            del self._by_name[name]

    def forget(self, container_id: str) -> None:
        """The id is no longer anybody's."""
        self._ids.discard(container_id)

    def resolve(self, reference: str) -> str:
        """The id meant by a full id, a name (with or without slash) or an unambiguous id prefix, in this order.

        Raises ``NotFound("No such container: x")`` or ``InvalidArgument`` for an ambiguous prefix.
        """
        if reference in self._ids:
            return reference
        named = self._by_name.get(reference.removeprefix("/"))
        if named is not None:
            return named
        if _HEX.fullmatch(reference):
            matches = [i for i in self._ids if i.startswith(reference)]
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise InvalidArgument(
                    f"Multiple IDs found with provided prefix: {reference}", hint="give more digits of the id"
                )
        raise NotFound(f"No such container: {reference}")
