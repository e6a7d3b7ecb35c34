"""`dev/check`: exit code 0 = all well, 1 = violations, 2 = no verdict."""

import argparse
import json
import sys
import time
import traceback

from .environment import CannotCheck, settings
from .run import check, read_produced


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        prog="dev/check",
        description="Compares source topic, table, DLQ and bucket, by code that is not the worker's. "
        "Exit code 0: all well; 1: violations; 2: could not check.",
    )
    parser.add_argument("--env", metavar="FILE", help="file of `export NAME=value` lines, as target/stack/env")
    parser.add_argument("--topic", help="source topic (default: from the environment, else feed.interactions.v1)")
    parser.add_argument("--dlq-topic", help="default: the source topic with .dlq")
    parser.add_argument("--group", help="consumer group whose committed offsets are compared")
    parser.add_argument("--prefix", help="folder of the exports in the bucket (default: exports)")
    parser.add_argument("--database-url", help="instead of DATABASE_URL and FEED_WORKER_POSTGRES__MORE_URLS")
    parser.add_argument(
        "--more-database-url", action="append", default=[], metavar="URL", help="another server, beside --database-url; may be repeated"
    )
    parser.add_argument("--s3-folder", metavar="DIR", help="read the bucket as a folder instead of over the S3 API")
    parser.add_argument("--weights", help="as INTERACTION_WEIGHTS")
    parser.add_argument("--produced", metavar="FILE", help="NDJSON of what was produced")
    parser.add_argument("--allow-unexported", action="store_true", help="rows above export_frontier need no file yet")
    parser.add_argument("--allow-pending", action="store_true", help="records above persist_frontier need no row yet")
    parser.add_argument("--json", metavar="FILE", help="write verdict, counts and figures there")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse_arguments(argv)
    started = time.monotonic()
    try:
        report, summary = check(settings(arguments), read_produced(arguments.produced))
    except CannotCheck as error:
        print(f"cannot check: {error}", file=sys.stderr)
        return write(arguments.json, {"verdict": "cannot check", "error": str(error)}, 2)
    except Exception as error:  # a fault of the checker is no verdict either
        traceback.print_exc()
        return write(arguments.json, {"verdict": "cannot check", "error": repr(error)}, 2)
    summary["seconds"] = round(time.monotonic() - started, 1)
    for line in report.lines():
        print(line)
    print(sentence(report, summary))
    verdict = "all well" if report.clean else "violations"
    return write(
        arguments.json,
        {"verdict": verdict, "violations": report.violations_json(), "summary": summary},
        0 if report.clean else 1,
    )


def sentence(report, summary):
    state = "all well" if report.clean else f"{sum(report.counts.values())} violations"
    return (
        f"{state}: {summary['produced']} records = {summary['persisted']} rows + {summary['dead_lettered']} dead letters"
        f"{' + ' + str(summary['pending']) + ' pending' if summary['pending'] else ''}; "
        f"{summary['exported']} rows in {summary['files']} files, {summary['unexported']} not yet; "
        f"{sum(day['closed'] for day in summary['days'].values())} closed days; {summary['seconds']} s"
    )


def write(path, body, code):
    if path:
        with open(path, "w", encoding="utf-8") as out:
            json.dump(body, out, indent=2)
            out.write("\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
