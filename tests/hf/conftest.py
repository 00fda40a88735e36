"""Register the marks of transformers' own suite (test_hf_mixins.py)."""


def pytest_configure(config):
    for name in ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test"):
        config.addinivalue_line("markers", f"{name}: of transformers' suite")
