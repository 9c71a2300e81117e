"""A lock between machines that share no disk: a claim in the bucket, kept alive by its holder.

Claims lie in `leases/<name>/` and are numbered. A claim is made when no living one is there, by creating the
next number, which only one of several askers can do. A claimant then looks again and withdraws when it finds
a claim that it has not judged dead, so a listing that was out of date does no harm. The holder rewrites its
claim every few seconds. Nobody compares clocks of two machines: a claim is dead when the asker saw it
unchanged for `EXPIRY_SECONDS` on its own clock.

Where the server cannot create exclusively, every claim has a name of its own, and two who claim at the same
moment both see the other, withdraw, and try again after different times: slower, and just as exclusive as the
server's listings are up to date. Should two hold the same lease in spite of it all, a holder that was
suspended for example, the same work is done twice, with the same result.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import uuid
from collections.abc import Iterator

from alphaquant.errors import StoreError
from alphaquant.progress import reporter
from alphaquant.store.bucket import Bucket
from alphaquant.store.files import parse_json
from alphaquant.store.lock import describe, given_up, who_am_i

BEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
POLL_SECONDS = 2.0
_FAREWELL_SECONDS = 5.0


class Lease:
    """One asker's claim on a name; `lost` is set when somebody took it over."""

    def __init__(
        self, bucket: Bucket, name: str, what: str, place: str, doing: str = "computing the same"
    ) -> None:
        self.lost = threading.Event()
        self._bucket = bucket
        self._folder = f"leases/{name}"
        self._what = what
        self._doing = doing
        self._place = place
        self._me = {**who_am_i(), "holder": uuid.uuid4().hex, "place": place}
        self._beats = 0
        self._claim = ""
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._done = threading.Event()
        self._reporter = reporter()
        self._heart = threading.Thread(target=self._beat, daemon=True, name=f"lease {name}")

    def acquire(self) -> None:
        """Wait until the lease is ours. Raises StoreError when the bucket does not answer."""
        waited = False
        while True:
            claims = self._claims()
            living = {claim: text for claim, text in claims.items() if not self._dead(claim, text)}
            if not living:
                if self._take(claims):
                    break
                _pause(random.uniform(0, POLL_SECONDS / 4))
                continue
            if not waited:
                holder = describe(parse_json(next(iter(living.values()))))
                self._reporter.note(f"{self._what}: waiting for {holder}, which is {self._doing}")
            waited = True
            _pause(POLL_SECONDS)
        self._heart.start()

    def release(self) -> None:
        """Give the lease back; without a network it is left to expire."""
        self._done.set()
        self._heart.join(_FAREWELL_SECONDS)
        if not self._heart.is_alive():
            with contextlib.suppress(StoreError):
                self._bucket.remove([f"{self._folder}/{self._claim}"])

    def _claims(self) -> dict[str, bytes]:
        names = sorted(name for name in self._bucket.files(self._folder) if name[:8].isdecimal())
        texts = self._bucket.read_many(f"{self._folder}/{name}" for name in names)
        return {name: text for name, text in zip(names, texts, strict=True) if text is not None}

    def _dead(self, claim: str, text: bytes) -> bool:
        holder = parse_json(text)
        if isinstance(holder, dict) and holder.get("place") == self._place:
            return True  # we hold this place's own lock, so whoever claimed here before is gone
        now = time.monotonic()
        before, since = self._seen.get(claim, (None, now))
        if before != text:
            self._seen[claim] = (text, since := now)
        return now - since >= EXPIRY_SECONDS

    def _take(self, dead: dict[str, bytes]) -> bool:
        number = 1 + max((int(claim[:8]) for claim in dead), default=0)
        text = self._text()
        if self._bucket.exclusive():
            self._claim = f"{number:08d}.json"
            path = f"{self._folder}/{self._claim}"
            # a driver that repeats a request whose answer was lost is refused by its own first try
            if not self._bucket.create(path, text) and self._bucket.read(path) != text:
                return False
        else:
            self._claim = f"{number:08d}-{self._me['holder']}.json"
            path = f"{self._folder}/{self._claim}"
            self._bucket.write(path, text)
        others = {claim: text for claim, text in self._claims().items() if claim != self._claim}
        if any(dead.get(claim) != text for claim, text in others.items()):
            self._bucket.remove([path])
            return False
        self._bucket.remove(f"{self._folder}/{claim}" for claim in dead)
        return True

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with contextlib.suppress(StoreError):  # the next beat may get through
                if self._claim not in self._bucket.files(self._folder):
                    self.lost.set()
                    self._reporter.note(
                        f"{self._what}: another machine took over, since this one was not heard of for "
                        f"{EXPIRY_SECONDS:.0f} s; both go on, with the same result"
                    )
                    return
                self._beats += 1
                self._bucket.write(f"{self._folder}/{self._claim}", self._text())

    def _text(self) -> bytes:
        return json.dumps({**self._me, "beats": self._beats}).encode()


@contextlib.contextmanager
def leased(
    bucket: Bucket, name: str, what: str, place: str, doing: str = "computing the same"
) -> Iterator[Lease]:
    """Hold the lease `name`; a waiter reports what it waits for: `what`, and what the holder is `doing`.

    `place` names what this process has locked besides: the holder's lock on its own machine. A claim of the
    same place is therefore known to be dead at once. Raises StoreError when the bucket does not answer.
    """
    lease = Lease(bucket, name, what, place, doing)
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()


def _pause(seconds: float) -> None:
    if given_up.wait(seconds):
        raise KeyboardInterrupt
