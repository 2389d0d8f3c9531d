package message

import "testing"

func TestSuppressedAs(t *testing.T) {
	for in, want := range map[string]string{
		"Ann@Reader.example": "ann@reader.example", `"A <b>" <Ann@reader.example>`: "ann@reader.example", " ann@reader.example ": "ann@reader.example",
		"<ann@reader.example> ": "ann@reader.example", "ZOË@bücher.example": "zoË@bücher.example", "": "", "a>": "a>",
	} {
		if got := SuppressedAs(ChannelEmail, in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := SuppressedAs(ChannelPush, "Token <A>"); got != "Token <A>" {
		t.Errorf("a token is changed: %q", got)
	}
}
