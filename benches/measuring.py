"""What the benchmarks share: fio run to its end, counts of a process, and numbers that may be missing.

A row in which no I/O ended within its time has no ratio and no cost per I/O: those are None here, and shown as a dash.
"""

import json
import os
import statistics
import subprocess
import sys


def fio(command, out, **how):
    """Runs this command line of fio and gives its only job; when fio fails, the script ends with what fio said."""
    command = command + ["--output-format=json", f"--output={out}"]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **how)
    said, job = done.stderr, None
    try:
        with open(os.path.join(how.get("cwd", "."), out)) as f:
            # With --output fio's messages come into the file, before what is JSON.
            notes, brace, rest = f.read().partition("{")
        said += notes
        job = json.JSONDecoder().raw_decode(brace + rest)[0]["jobs"][0]
    except (OSError, ValueError, LookupError) as error:
        said += f"no result: {error}"
    if done.returncode or not job or job["error"]:
        error = f", error {job['error']} ({os.strerror(job['error'])}) in its job" if job and job["error"] else ""
        sys.exit(f"fio ended with code {done.returncode}{error}: {' '.join(command)}\n{said.strip()}")
    return job


def outcome(job):
    """Of what the job did: I/Os a second, bytes a second, mean latency in µs, I/Os."""
    side = job["write"] if job["write"]["io_bytes"] else job["read"]
    return {"iops": side["iops"], "bytes_s": side["bw_bytes"], "mean_us": side["clat_ns"]["mean"] / 1000,
            "ios": side["total_ios"]}


def p99_us(job):
    """None when nothing ended."""
    side = job["write"] if job["write"]["io_bytes"] else job["read"]
    found = side["clat_ns"].get("percentile", {}).get("99.000000")
    return None if found is None else found / 1000


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def over(one, other):
    """One divided by the other; None when either is missing or nothing can be said."""
    return one / other if one is not None and other else None


def ratios(ones, others, key="iops"):
    """Of measurements that were taken in turn, round by round; where both had I/O."""
    return [over(one[key] or None, other[key]) for one, other in zip(ones, others)]


def known(values):
    return sorted(value for value in values if value is not None)


def median(values):
    values = known(values)
    return statistics.median(values) if values else None


def shown(value, form="{:.2f}"):
    return "–" if value is None else form.format(value)


def spread(values, form="{:.2f}"):
    """Median, and the range."""
    values = known(values)
    if not values:
        return "–"
    return f"{form.format(statistics.median(values))} ({form.format(values[0])}–{form.format(values[-1])})"
