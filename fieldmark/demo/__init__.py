"""The built-in demo set: drawn moths in families, genera and look-alike species."""

from fieldmark.demo.dataset import generate_demo
from fieldmark.demo.records import DemoSettings
from fieldmark.demo.sheet import draw_contact_sheet

__all__ = ["DemoSettings", "draw_contact_sheet", "generate_demo"]
