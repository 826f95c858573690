"""XML elements, as the domain's parts are made of them. Pure."""

from lxml import etree


def element(tag: str, *content: etree._Element | str, **attributes: str) -> etree._Element:
    """An element with attributes, and elements or a text inside."""
    made = etree.Element(tag, attributes)
    for part in content:
        if isinstance(part, str):
            made.text = part
        else:
            made.append(part)
    return made
