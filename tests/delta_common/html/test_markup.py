"""Text from outside becomes words on a page, never markup."""

from delta_common.html.markup import Markup, element, escape, join


def test_markup_escapes_all_it_is_given() -> None:
    made = element("p", "<b>&\"'\u202e", element("i", "x"), None, class_='"><script>', hidden=False, data_a=1)
    assert made == ('<p class="&quot;&gt;&lt;script&gt;" data-a="1">&lt;b&gt;&amp;&quot;&#x27;\ufffd<i>x</i></p>')


def test_only_markup_is_left_as_it_is() -> None:
    assert join(Markup("<b>"), "<i>", None, element("br")) == "<b>&lt;i&gt;<br></br>"
    assert isinstance(join("x"), Markup)


def test_characters_that_turn_or_hide_the_rest_are_replaced() -> None:
    assert escape("a\x00\u2028\u200b\ue000é\n\t") == "a\ufffd\ufffd\ufffd\ue000é\n\t"
