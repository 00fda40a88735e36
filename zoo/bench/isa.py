"""Limit every benchmarked library to an older instruction set, through the libraries' environment variables."""

from collections.abc import Mapping

HELD: dict[str, Mapping[str, str]] = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX512",
        "CT2_FORCE_CPU_ISA": "AVX512",
    },
}
"""Environment variables by instruction set: torch, oneDNN, MKL (on Intel), FBGEMM, CTranslate2. avx512 excludes AMX."""
NAMES = {"avx2": "AVX2", "avx512": "AVX-512", "amx": "AVX-512 with AMX"}


def name_isa(isa: str) -> str:
    """Return the usual spelling of an instruction set: `avx512` → `AVX-512`."""
    return NAMES.get(isa, isa.upper())
