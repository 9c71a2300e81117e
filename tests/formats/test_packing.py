import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from hypothesis import given
from hypothesis import strategies as st

from alphaquant.errors import FormatError
from alphaquant.formats.packing import pack_bytes, pack_words, unpack_bytes, unpack_words

BITS = (2, 3, 4, 6, 8)


@given(
    bits=st.sampled_from(BITS), rows=st.integers(1, 4), count=st.integers(1, 70), seed=st.integers()
)
def test_the_stream_is_undone(bits: int, rows: int, count: int, seed: int) -> None:
    codes = random_codes(rows, count, bits, seed)
    assert torch.equal(unpack_bytes(pack_bytes(codes, bits), bits, count), codes)
    assert torch.equal(unpack_words(pack_words(codes, bits), bits, count), codes)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [32, 40, 64, 99])
def test_words_are_those_of_compressed_tensors(bits: int, count: int) -> None:
    codes = random_codes(3, count, bits)
    signed = (codes.int() - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(pack_words(codes, bits), pack_to_int32(signed, bits))


def test_many_rows_are_packed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = random_codes(50, 24, 3)
    whole = pack_bytes(codes, 3)
    monkeypatch.setattr("alphaquant.formats.packing._ROWS_AT_ONCE", 100)
    assert torch.equal(pack_bytes(codes, 3), whole)
    assert torch.equal(unpack_bytes(whole, 3, 24), codes)


@pytest.mark.parametrize(
    ("bits", "golden"),
    [(2, "e4e4"), (3, "88c6fa"), (4, "10325476"), (6, "40200c44611c"), (8, "0001020304050607")],
)
def test_golden_bytes(bits: int, golden: str) -> None:
    codes = (torch.arange(8) % 2**bits).to(torch.uint8)[None]
    expected = sum(int(code) << (bits * at) for at, code in enumerate(codes[0]))
    assert expected == int.from_bytes(bytes.fromhex(golden), "little")
    assert bytes(pack_bytes(codes, bits)[0].tolist()).hex() == golden


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(FormatError, match="3 bytes per row hold 8 elements of 3 bits, not 9"):
        unpack_bytes(torch.zeros(1, 3, dtype=torch.uint8), 3, 9)


def random_codes(rows: int, count: int, bits: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed % 2**32)
    return torch.randint(0, 2**bits, (rows, count), generator=generator, dtype=torch.uint8)
