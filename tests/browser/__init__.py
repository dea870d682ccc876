"""Real browsers at our servers: headless Chromium, and Firefox where it is to be had."""

import pytest

pytest.register_assert_rewrite("tests.browser.scenarios")
