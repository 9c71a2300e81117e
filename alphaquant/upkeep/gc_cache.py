"""gc of this machine's cache of a bucket: what was not read lately goes, and is fetched again when it is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from alphaquant.store.artifacts import MANIFEST
from alphaquant.store.remote import RemoteStore
from alphaquant.upkeep.consequences import Name, name_of
from alphaquant.upkeep.gc_report import DAY, LOG_DAYS, Cache
from alphaquant.upkeep.inventory import artifacts, files_of, left_over, logs
from alphaquant.upkeep.marking import Keep
from alphaquant.upkeep.sweeping import by_kind, moments, older, remove, remove_empty, sweep, used

_UNSENT_DAYS = 30.0
"""What the bucket does not have may be work whose upload broke off: it stays longer."""


def trim(
    store: RemoteStore, in_bucket: Mapping[Name, Collection[str]], keep: Keep, *, delete: bool
) -> Cache:
    """Find, and remove when `delete`, what this machine did not read for the grace period.

    Nothing goes that a living process here has used since it began. `in_bucket` names the files of artifacts
    that the bucket had. Raises UserError when it may not be written.
    """
    root = store.root
    if not root.is_dir():
        return Cache(str(root), 0, 0, 0, 0)
    now, cutoff = moments(root, keep.grace_hours, delete=delete)
    unsent = min(cutoff, now - int(_UNSENT_DAYS * DAY * 1e9))
    found = artifacts(root)
    sizes = {stored: list(files_of(stored.folder).values()) for stored in found}
    garbage = []
    for stored in found:
        sent = MANIFEST in in_bucket.get(name_of(stored.ref), ())
        if not used(stored, cutoff if sent else unsent):
            garbage.append(stored)
    if delete:
        garbage = sweep(root, garbage, cutoff)
        remove(root, (path for paths in left_over(root).values() for path in paths))
        remove(root, older(logs(root), LOG_DAYS))
        remove_empty(root)
    kinds = by_kind(sizes, {name_of(stored.ref) for stored in garbage})
    return Cache(
        folder=str(root),
        removed=sum(kind.removed for kind in kinds),
        freed=sum(kind.freed for kind in kinds),
        kept=sum(kind.kept for kind in kinds),
        kept_bytes=sum(kind.kept_bytes for kind in kinds),
    )
