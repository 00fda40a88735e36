"""Register the marks of transformers' own suite (test_hf_mixins.py)."""


def pytest_configure(config):
    marks = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "generate")
    for name in (*marks, "torch_compile_test", "torch_export_test"):
        config.addinivalue_line("markers", f"{name}: of transformers' suite")
