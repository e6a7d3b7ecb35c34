"""`produce --file`: what is sent, what is refused, and what becomes of a run that is killed."""

import base64
import json
import random
import signal
import subprocess
import time
import uuid
from collections import Counter

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from harness import WORKER, wait_until

LINES = 100_000
BAD = {  # what a line may be instead of an event → why it is refused
    "": "empty_value",
    "[1]": "bad_framing",
    '{"userId": 1': "json_malformed",
    '{"userId":"a","userId":"b"}': "json_duplicate_key",
    '{"videoId":"x"}': "missing_field",
    "x" * 2_000_000: "value_too_large",
}


def event(number, **changes):
    fields = {
        "userId": str(uuid.UUID(int=number % 997 + (4 << 76) + (8 << 60))),
        "videoId": "6f1c1c6e-9b0c-4d55-8a4c-4b7f0f2f9a10",
        "interactionType": ("view", "Like", "skip")[number % 3],
        "timestamp": 1_760_000_000_000 + number,
        "eventId": str(uuid.UUID(int=number)),
        "watchTime": number / 8,
        "metadata": {"line": str(number), "city": "Zürich"},
    }
    if number % 2:
        fields |= {"feedSessionId": f"s{number}", "algorithm": "taste", "experimentVariantId": "b", "position": number % 50}
        fields |= {"recommendationScore": 1 / number, "isMuted": True}
    return json.dumps(fields | changes, ensure_ascii=False)


def write(path, count, bad=None):
    bad = bad or {}
    with open(path, "w", encoding="utf-8") as out:
        for number in range(1, count + 1):
            out.write(bad.get(number) if number in bad else event(number))
            out.write("\n")
    return path


def start(case, path, *options, stdin=subprocess.DEVNULL):
    words = [WORKER, "produce", "--file", path, "--settle", "1s", "--progress", "none", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=case.env, stdin=stdin, cwd=case.folder, **pipes)


def finish(process, timeout_s=120):
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


def records(case):
    """Every record of the topic, partition by partition: (partition, key, value, line number from its header)."""
    ends = case.end_offsets()
    consumer = Consumer({"bootstrap.servers": case.bootstrap, "group.id": "reader", "enable.partition.eof": True})
    consumer.assign([TopicPartition(case.topic, number, OFFSET_BEGINNING) for number in ends])
    found, open_ends = [], {number for number, end in ends.items() if end}
    deadline = time.monotonic() + 60
    while open_ends:
        assert time.monotonic() < deadline, f"partitions {open_ends} were not read to their ends"
        for message in consumer.consume(10_000, timeout=1.0):
            if message.error():
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                open_ends.discard(message.partition())
                continue
            line = int(dict(message.headers())["feed_worker.produce.line"])
            found.append((message.partition(), message.key().decode(), message.value(), line))
    consumer.close()
    return found


def bad_lines(path):
    return {entry["line"]: entry["reason"] for entry in map(json.loads, path.read_text().splitlines())}


def sent_so_far(case):
    return sum(case.end_offsets().values())


def test_killed_again_and_again_it_sends_every_good_line_once(case):
    seed = random.SystemRandom().getrandbits(32)
    rng = random.Random(seed)
    print(f"seed {seed}")
    numbers = rng.sample(range(1, LINES + 1), 10)
    texts = list(BAD) + [event(1, interactionType="stare"), event(1, timestamp="soon"), event(1, userId="me"), event(1, position=-1)]
    planted = dict(zip(numbers, texts, strict=True))
    path = write(case.folder / "events.ndjson", LINES, planted)
    kills = 0
    while sent_so_far(case) < LINES * 0.8:
        # So slow that none ends by itself before it is seen to have come so far, on a busy machine too.
        process = start(case, path, "--rate", "8000")
        if kills == 2:  # while it looks at what is there
            time.sleep(0.5)
        else:
            goal = min(sent_so_far(case) + rng.randrange(1, LINES // 5), LINES * 0.85)
            wait_until(lambda: sent_so_far(case) >= goal or process.poll() is not None, "records of the run", 60, 0.01)
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        kills += 1
    report = case.folder / "report.json"
    code, out, err = finish(start(case, path, "--report-json", report))
    assert code == 65 and "10 lines are bad" in err, out + err
    assert kills >= 4
    told = json.loads(report.read_text())
    assert (told["lines"], told["sent"], told["bad"], told["doubles"]) == (LINES, LINES - 10, 10, 0), told
    assert told["is_complete"] and told["resumed_after"] + told["found"] > 0

    found = records(case)
    doubles = [line for line, count in Counter(line for *_, line in found).items() if count > 1]
    assert not doubles, f"{len(doubles)} lines twice after {kills} kills, seed {seed}: {sorted(doubles)[:10]}"
    assert {line for *_, line in found} == set(range(1, LINES + 1)) - set(planted)
    assert len(found) == LINES - 10
    last = {}
    for partition, key, value, line in found:
        assert value.decode() == event(line) and key == json.loads(value)["userId"]
        assert last.get(partition, 0) < line, f"partition {partition}: line {line} lies after line {last[partition]}"
        last[partition] = line
    reasons = bad_lines(case.folder / "events.ndjson.bad.ndjson")
    assert sorted(reasons) == sorted(planted)
    for number, text in planted.items():
        if text in BAD:
            assert reasons[number] == BAD[text], number
    for number in sorted(planted)[:10]:
        assert f"line {number}: {reasons[number]}" in out, out

    # Once more: nothing is left to do, and the answer is the same.
    code, out, _ = finish(start(case, path))
    assert code == 65 and len(records(case)) == LINES - 10, out


def test_both_encodings_become_the_same_rows(case):
    case.schemas()
    path = write(case.folder / "events.ndjson", 300)
    for encoding in ("json", "avro"):
        journal = case.folder / f"{encoding}.progress"
        code, out, err = finish(start(case, path, "--encoding", encoding, "--resume", journal))
        assert code == 0, out + err
    firsts = Counter(value[:1] for _, _, value, _ in records(case))
    assert firsts == {b"{": 300, b"\x00": 300}
    case.start_ready()
    case.wait_drained()
    rows = case.query(
        "SELECT event_id, user_id, video_id, interaction_type, occurred_at, watch_time_seconds, metadata::text,"
        " feed_session_id, algorithm, experiment_variant_id, position, recommendation_score, count(*)"
        " FROM user_interactions GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"
    )
    assert len(rows) == 300 and all(row[-1] == 2 for row in rows)
    assert sum(row[-2] is not None for row in rows) == 150
    case.wait_exported()
    case.assert_clean(produced=False)


def test_an_interrupted_run_says_so_and_goes_on(case):
    path = write(case.folder / "events.ndjson", 20_000)
    process = start(case, path, "--rate", "1000")
    wait_until(lambda: sent_so_far(case) > 2000, "records", 60)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130 and "the same command goes on" in err, out + err
    assert 2000 < sent_so_far(case) < 20_000
    code, out, err = finish(start(case, path))
    assert code == 0 and "20000 sent" in out, out + err
    assert Counter(line for *_, line in records(case)) == Counter(range(1, 20_001))


def test_standard_input_goes_on_when_it_is_piped_again(case):
    path = write(case.folder / "events.ndjson", 20_000)
    options = ("--resume", case.folder / "journal")
    with open(path, "rb") as stdin:
        process = start(case, "-", *options, "--rate", "2500", stdin=stdin)
        wait_until(lambda: sent_so_far(case) > 9000, "records", 60)
        process.kill()
        process.communicate()
    with open(write(case.folder / "other.ndjson", 20_000, {5: event(6)}), "rb") as stdin:
        code, _, err = finish(start(case, "-", *options, stdin=stdin))
    assert code == 70 and "journal is of another input" in err, err
    with open(path, "rb") as stdin:
        code, out, err = finish(start(case, "-", *options, stdin=stdin))
    assert code == 0, out + err
    assert Counter(line for *_, line in records(case)) == Counter(range(1, 20_001))
    # Without a journal it is said at once that there is no going on.
    with open(write(case.folder / "few.ndjson", 3, {2: "no"}), "rb") as stdin:
        code, out, err = finish(start(case, "-", "--allow-bad", "1", stdin=stdin))
    assert code == 0 and "cannot go on" in err and "2 sent, 1 bad" in out and "line 2: bad_framing" in out, out + err


@pytest.mark.parametrize(
    "change", ["--encoding avro", "another topic", "another input", "no journal"], ids=lambda change: change.replace(" ", "-")
)
def test_a_journal_of_something_else_is_refused(case, change):
    case.schemas()
    path = write(case.folder / "events.ndjson", 50)
    assert finish(start(case, path))[0] == 0
    options = []
    if change == "--encoding avro":
        options = change.split()
    elif change == "another topic":
        case.topic = f"{case.topic}.other"
        case.create_topic(case.topic, 6, {})
    elif change == "another input":
        write(path, 50, {7: event(8)})
    else:
        (case.folder / "events.ndjson.progress").write_text(event(1) + "\n")
    before = sent_so_far(case)
    code, out, err = finish(start(case, path, *options))
    assert code == 70 and "journal" in err, out + err
    assert sent_so_far(case) == before


def test_two_runs_of_one_file_are_one_too_many(case):
    path = write(case.folder / "events.ndjson", 5000)
    first = start(case, path, "--rate", "50")  # it does not end by itself meanwhile
    wait_until(lambda: sent_so_far(case) > 10, "records", 60)
    code, _, err = finish(start(case, path))
    assert code == 70 and "in use" in err, err
    first.send_signal(signal.SIGINT)
    code, out, err = finish(first)
    assert code == 130, out + err
    assert finish(start(case, path))[0] == 0
    assert Counter(line for *_, line in records(case)) == Counter(range(1, 5001))


def test_doubles_are_told_every_time(case):
    """A broker takes a request of a killed run late. The run that sees it says so, and so does every one after it."""
    path = write(case.folder / "events.ndjson", 3000)
    process = start(case, path, "--rate", "500")
    wait_until(lambda: sent_so_far(case) > 500, "records", 60)
    process.kill()
    process.communicate()
    before = sent_so_far(case)
    run = json.loads((case.folder / "events.ndjson.progress").read_text().splitlines()[0])["run"]
    process = start(case, path, "--rate", "500")
    wait_until(lambda: sent_so_far(case) > before, "records of the second run", 60)
    producer = case.producer()
    headers = [("feed_worker.produce.run", run.encode()), ("feed_worker.produce.line", b"3000")]
    producer.produce(case.topic, key=b"late", value=event(3000).encode(), headers=headers)
    assert producer.flush(30) == 0
    for _ in range(3):
        code, out, err = finish(process)
        assert code == 70 and "1 lines are in the topic twice" in err, out + err
        process = start(case, path)
    finish(process)
    counts = Counter(line for *_, line in records(case))
    assert counts == Counter(range(1, 3001)) + Counter([3000])


def test_bad_lines_go_into_no_file_of_somebody_else(case):
    path = write(case.folder / "events.ndjson", 3, {2: "no"})
    precious = case.folder / "precious.txt"
    precious.write_text("not to be lost\n")
    for target in (precious, path):
        before = target.read_text()
        code, out, err = finish(start(case, path, "--bad-lines", target))
        assert code == 66 and "no list of bad lines" in err, out + err
        assert target.read_text() == before and sent_so_far(case) == 0
        assert not (case.folder / "events.ndjson.progress").exists(), "nothing was begun"
    code, out, err = finish(start(case, path, "--bad-lines", case.folder / "own"))
    assert code == 65 and bad_lines(case.folder / "own") == {2: "bad_framing"}, out + err


def limit_records(case, limit):
    """The largest batch that the topic takes, in bytes."""
    entry = ConfigEntry("max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, case.topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": case.bootstrap})
    admin.incremental_alter_configs([resource])[resource].result(20)


def large_event(number, size):
    noise = base64.b64encode(random.Random(number).randbytes(size * 3 // 4)).decode()
    return event(number, metadata={"noise": noise})


def test_large_events_go_into_a_topic_that_takes_small_batches_only(case):
    """A broker refuses a batch above the topic's max.message.bytes, though it would take each event of it."""
    limit_records(case, 20_000)
    texts = [large_event(number, 8_000) for number in range(1, 501)]
    path = case.folder / "events.ndjson"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    code, out, err = finish(start(case, path))
    assert code == 0, out + err
    assert {line: value.decode() for *_, value, line in records(case)} == dict(enumerate(texts, 1))


def test_a_line_that_the_topic_does_not_take_is_named(case):
    limit_records(case, 10_000)
    texts = [event(number) for number in range(1, 1001)]
    texts[499] = large_event(500, 15_000)
    path = case.folder / "events.ndjson"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    for _ in range(2):
        code, out, err = finish(start(case, path))
        assert code == 65 and "line 500 is larger than the topic takes" in err and "is 10000" in err, out + err
    limit_records(case, 100_000)
    code, out, err = finish(start(case, path))
    assert code == 0, out + err
    found = records(case)
    assert len(found) == 1000 and {line: value.decode() for *_, value, line in found} == dict(enumerate(texts, 1))
