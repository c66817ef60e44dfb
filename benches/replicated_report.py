"""The tables of replicated.py, with the goals beside what was found."""

import measuring
from measuring import median, over, ratios, shown, spread

NAMES = ["three", "one", "ceph", "raw"]
SNAPSHOT = "snapshots while writing, qd 32"
WRITE, WRITE_1, FLUSHES = "random write, qd 32", "random write, qd 1", "random write, qd 16, flush every 8"
READ, READ_1, MIB = "random read, qd 32", "random read, qd 1", "1 MiB sequential write, qd 8"


def add(results, earlier):
    """The rounds of an earlier run, as if they had been of this one."""
    for row, by_name in earlier["runs"].items():
        for name, rounds in by_name.items():
            results["runs"].setdefault(row, {}).setdefault(name, []).extend(rounds)
    results["facts"] += earlier["facts"]


def of(runs, row, name, key):
    return [r[key] for r in runs.get(row, {}).get(name, [])]


def compared(runs, row, other, key="iops"):
    """`three` over the other, round by round; None where a round has not both."""
    by_name = runs.get(row, {})
    return ratios(by_name.get("three", []), by_name.get(other, []), key)


def speed(row, runs, name):
    """What a target reached in a row: MB/s of the large ones, else IOPS, with one in flight the mean as well."""
    if not of(runs, row, name, "iops"):
        return "–"
    mark = "" if all(of(runs, row, name, "device")) else "*"
    if row.startswith("1 MiB"):
        return shown(over(median(of(runs, row, name, "bytes_s")), 1e6), "{:,.0f}") + f" MB/s{mark}"
    text = shown(median(of(runs, row, name, "iops")), "{:,.0f}") + mark
    if "qd 1" in row and "qd 16" not in row:
        text += ", " + shown(median(of(runs, row, name, "mean_us")), "{:,.0f} µs")
    return text


def show(results):
    runs = results["runs"]
    names = [name for name in NAMES if any(name in by_name for by_name in runs.values())]
    rounds = max(len(r) for by_name in runs.values() for r in by_name.values())
    print(f"{results['machine']}, {rounds} rounds; medians, and the range of the ratio over the rounds\n")
    others = max(fact["others"] for fact in results["facts"])
    if others > 0.05:
        print(f"**Not to be quoted:** before a run others used {others:.0%} of the machine.\n")
    for name in names:
        idle = [fact["idle"][name] for fact in results["facts"] if name in fact["idle"]]
        if idle and name != "one":
            daemons = "eskerd" if name == "three" else name
            print(f"The daemons of {daemons} used {max(idle):.1%} of a processor with nothing to do.")
        if not all(fact["direct"].get(name, True) for fact in results["facts"]):
            print(f"**{name} does not have its stores open with O_DIRECT.**")
    against = [name for name in ("one", "ceph") if name in names]
    heads = names + [f"three / {name}" for name in against]
    print("\n| row | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 1) + "|")
    for row in runs:
        if row != SNAPSHOT:
            cells = [speed(row, runs, name) for name in names]
            cells += [spread(compared(runs, row, name)) for name in against]
            print(f"| {row} | " + " | ".join(cells) + " |")
    print("\n* not through the device alone: served by a cache")
    show_costs(runs, [name for name in names if name != "raw"])
    show_snapshots(runs, [name for name in names if name != "raw"])
    show_goals(runs)
    moved = sum(r.get("leader_moved", False) for by_name in runs.values() for rs in by_name.values() for r in rs)
    if moved:
        print(f"\nIn {moved} rows another node led at the end than at the beginning.")


def show_costs(runs, names):
    print("\n| per I/O | " + " | ".join(f"{n}: CPU of all daemons, bytes to all devices per client byte" for n in names) + " |")
    print("|---" * (1 + len(names)) + "|")
    for row in runs:
        if row == SNAPSHOT:
            continue
        cells = []
        for name in names:
            cpu, moved = median(of(runs, row, name, "cpu_us")), median(of(runs, row, name, "device_per_client_byte"))
            each = f" (each copy {moved / 3:.2f})" if moved is not None and name != "one" and "write" in row else ""
            cells.append(f"{shown(cpu, '{:,.1f} µs')}, {shown(moved)}{each}" if cpu is not None else "–")
        print(f"| {row} | " + " | ".join(cells) + " |")


def show_snapshots(runs, names):
    if SNAPSHOT not in runs:
        return
    print("\n| a snapshot while qd 32 writes go on | " + " | ".join(names) + " |")
    print("|---" * (1 + len(names)) + "|")
    for text, key, form in [
            ("the command", "command_ms", "{:.1f}"), ("a command that changes nothing, with nobody writing", "command_alone_ms", "{:.1f}"),
            ("the request of the admin API", "api_ms", "{:.1f}"), ("IOPS after it, of before", "kept", "{:.2f}")]:
        unit = " ms" if key.endswith("_ms") else ""
        cells = []
        for name in names:
            values = [value for r in runs[SNAPSHOT].get(name, []) for value in r[key]]
            cells.append(spread(values, form) + unit if measuring.known(values) else "–")
        print(f"| {text} | " + " | ".join(cells) + " |")


def goals(runs):
    """(what, goal, found, whether it is reached; None: not measured)"""
    def least(what, goal, values, form="{:.2f}"):
        found = median(values)
        return what, f"≥ {goal:g}", spread(values, form), None if found is None else found >= goal

    def most(what, goal, values, unit=""):
        found = median(values)
        return what, f"≤ {goal:g}{unit}", spread(values) + unit, None if found is None else found <= goal
    yield least(f"{WRITE}, of Ceph", 18, compared(runs, WRITE, "ceph"))
    yield most(f"{WRITE_1}, mean latency of Ceph's", 0.19, compared(runs, WRITE_1, "ceph", "mean_us"))
    yield least(f"{FLUSHES}, of Ceph", 18, compared(runs, FLUSHES, "ceph"))
    yield least(f"{READ}, of Ceph", 5.4, compared(runs, READ, "ceph"))
    yield least(f"{READ_1}, of Ceph", 2.8, compared(runs, READ_1, "ceph"))
    yield large(runs)
    yield most(f"CPU of all daemons, {WRITE}", 30, of(runs, WRITE, "three", "cpu_us"), " µs")
    for row, goal in ((WRITE, 3.4), (WRITE_1, 6.2)):
        yield most(f"bytes to the three devices per client byte, {row}", goal, of(runs, row, "three", "device_per_client_byte"))
    rounds = runs.get(SNAPSHOT, {}).get("three", [])
    yield most("a snapshot while writing, asked for over the admin API", 5, [ms for r in rounds for ms in r["api_ms"]], " ms")
    yield most("the same by `esker snapshot create`, its start included", 5, [ms for r in rounds for ms in r["command_ms"]], " ms")
    yield least("IOPS after it, of before", 0.97, [share for r in rounds for share in r["kept"]])


def large(runs):
    """1 MiB writes: the lower of twice Ceph's and 0.8 of a third of the raw file's, by round."""
    by_name, key = runs.get(MIB, {}), "bytes_s"
    raw = [r[key] * 0.8 / 3 for r in by_name.get("raw", [])]
    ceph = [r[key] * 2 for r in by_name.get("ceph", [])] or raw
    bounds = [min(pair) for pair in zip(raw or ceph, ceph)]
    found = [over(r[key], bound) for r, bound in zip(by_name.get("three", []), bounds)]
    middle, bound = median(found), over(median(bounds), 1e6)
    return (f"{MIB}, of the lower of 2 × Ceph and 0.8 × raw / 3", f"≥ 1 ({shown(bound, '{:,.0f}')} MB/s)", spread(found),
            None if middle is None else middle >= 1)


def show_goals(runs):
    print("\n| three copies | goal | found | |")
    print("|---|---|---|---|")
    for what, goal, found, reached in goals(runs):
        if reached is not None:
            print(f"| {what} | {goal} | {found} | {'reached' if reached else '**missed**'} |")
