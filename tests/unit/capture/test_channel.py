"""Both ends treat the other as hostile."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from gpuaudit.capture import channel as channel_module
from gpuaudit.capture.channel import LINE_LIMIT_BYTES, TO_ATTACHER, TO_RECORDER, Channel, ChannelBroken


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours, TO_RECORDER)
    yield channel, theirs
    channel.close()
    theirs.close()


def receive_for_ever(channel: Channel) -> None:
    while True:
        channel.receive(1)


def send_for_ever(channel: Channel, size: int) -> None:
    while True:
        channel.send("status", text="x" * size)


def test_messages_arrive_whole_and_in_order(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    peer.sendall(b'{"type":"rows","n":1}\n{"type":"rows",')
    assert channel.receive(1) == [{"type": "rows", "n": 1}]
    peer.sendall(b'"n":2}\n')
    assert channel.receive(1) == [{"type": "rows", "n": 2}]
    assert channel.receive(0) == []


def test_waiting_for_one_type_keeps_the_others(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    peer.sendall(b'{"type":"rows","n":1}\n{"type":"signature","signature":""}\n{"type":"finish"}\n')
    assert channel.wait_for("signature", 1)["signature"] == ""
    assert [m["type"] for m in channel.receive(0)] == ["rows", "finish"]


def test_what_was_sent_before_the_end_is_handed_over_first(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    peer.sendall(b'{"type":"finish"}\n')
    peer.close()
    assert [m["type"] for m in channel.receive(1)] == ["finish"]
    with pytest.raises(ChannelBroken, match="closed the channel"):
        channel.receive(1)
    with pytest.raises(ChannelBroken):
        send_for_ever(channel, 1)


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[1,2]",
        b'"rows"',
        b'{"type":7}',
        b'{"type":["rows"]}',
        b'{"type":"shutdown"}',
        b'{"type":"receipt"}',
        b"{}",
        b"\xff\xfe",
        b'{"type":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_peer_that_breaks_the_form_is_cut_off(pair: tuple[Channel, socket.socket], line: bytes) -> None:
    channel, peer = pair
    writer = threading.Thread(target=lambda: peer.sendall(line + b"\n"))
    writer.start()
    with pytest.raises(ChannelBroken):
        receive_for_ever(channel)
    writer.join()


def test_an_endless_line_is_cut_off(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair

    def flood() -> None:
        try:
            for _ in range(64):
                peer.sendall(b"x" * (1 << 16))
        except OSError:
            pass

    writer = threading.Thread(target=flood)
    writer.start()
    with pytest.raises(ChannelBroken, match=f"more than {LINE_LIMIT_BYTES} bytes"):
        receive_for_ever(channel)
    channel.close()
    writer.join()


def test_a_flood_of_messages_is_cut_off(pair: tuple[Channel, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    channel, peer = pair
    monkeypatch.setattr(channel_module, "QUEUE_LIMIT_MESSAGES", 10)
    peer.sendall(b'{"type":"rows"}\n' * 100)
    with pytest.raises(ChannelBroken, match="more than 10 messages"):
        channel.receive(1)


def test_a_message_that_is_too_long_is_not_sent(pair: tuple[Channel, socket.socket]) -> None:
    with pytest.raises(ChannelBroken, match="more than"):
        pair[0].send("status", text="x" * LINE_LIMIT_BYTES)


def test_a_peer_that_reads_nothing_is_given_up(
    pair: tuple[Channel, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "SEND_DEADLINE_S", 0.01)
    with pytest.raises(ChannelBroken, match="read nothing"):
        send_for_ever(pair[0], 10_000)
    assert not pair[0].can_send()


def test_text_of_any_kind_survives() -> None:
    ours, theirs = socket.socketpair()
    one, other = Channel(ours, TO_ATTACHER), Channel(theirs, TO_RECORDER)
    row = {"comm": "a\nb\u2028\udcff\x00", "n": 2**64 - 1, "none": None}
    one.send("rows", table="processes", rows=[row])
    assert other.receive(1) == [{"type": "rows", "table": "processes", "rows": [row]}]
    assert json.dumps(row)
    one.close()
    other.close()
