package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/stormpost/stormpost/ingest"
	"github.com/stormpost/stormpost/internal/message"
)

type kind uint8

const (
	kindText    kind = iota // a string
	kindBytes               // a string of base64
	kindTime                // a string as in RFC 3339
	kindBool                // true or false
	kindWhole               // a number of digits
	kindList                // an array of elem
	kindMembers             // an object whose names the client chooses, of elem
	kindObject              // an object of fields
	kindTarget              // a string, or an object of fields
)

const halfPair = "has half a surrogate pair"

var wanted = [...]string{
	kindText: "a string", kindBytes: "a string of base64", kindTime: "a time as in RFC 3339, of 1970 to 9998",
	kindBool: "true or false", kindWhole: "a whole number",
	kindList: "an array", kindMembers: "an object", kindObject: "an object", kindTarget: "a string or an object",
}

// shape is what a JSON value may be. It is made from a Go type once.
type shape struct {
	kind   kind
	elem   *shape
	fields map[string]field
	// A whole number's bounds, and a text's, in characters, if most isn't 0.
	least, most int
}

type field struct {
	bit uint // its place among its object's fields, below 64
	*shape
}

func shapeOf(t reflect.Type) *shape {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return &shape{kind: kindTime}
	case t == reflect.TypeFor[[]byte]():
		return &shape{kind: kindBytes}
	case t == reflect.TypeFor[message.Target]():
		s := shapeOf(reflect.TypeFor[struct {
			Topic    string            `json:"topic"`
			Endpoint string            `json:"endpoint"`
			Keys     map[string]string `json:"keys"`
		}]())
		s.kind = kindTarget
		return s
	}
	switch t.Kind() {
	case reflect.Pointer:
		return shapeOf(t.Elem())
	case reflect.String:
		return &shape{kind: kindText}
	case reflect.Bool:
		return &shape{kind: kindBool}
	case reflect.Int32, reflect.Int:
		return &shape{kind: kindWhole, least: math.MinInt32, most: math.MaxInt32}
	case reflect.Slice:
		return &shape{kind: kindList, elem: shapeOf(t.Elem())}
	case reflect.Map:
		return &shape{kind: kindMembers, elem: shapeOf(t.Elem())}
	case reflect.Struct:
		s := &shape{kind: kindObject, fields: map[string]field{}}
		for _, f := range reflect.VisibleFields(t) {
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && !f.Anonymous {
				of := shapeOf(f.Type)
				of.bound(f.Tag)
				s.fields[name] = field{uint(len(s.fields)), of}
			}
		}
		return s
	}
	panic("no shape for " + t.String()) // a field of a new type needs one
}

// bound takes over the bounds that a field's tags give the document.
func (s *shape) bound(tag reflect.StructTag) {
	names := map[kind][2]string{kindText: {"minLength", "maxLength"}, kindWhole: {"minimum", "maximum"}}[s.kind]
	for i, bound := range []*int{&s.least, &s.most} {
		if n, err := strconv.Atoi(tag.Get(names[i])); err == nil {
			*bound = n
		}
	}
}

// check goes through a body that is valid JSON and UTF-8, and names all that
// encoding/json would let pass or not name well: unknown and repeated members,
// names in another case, values of another kind or out of bounds, half surrogate
// pairs. A null is as if its member were absent. bad are the body's own members
// that something is wrong with, also those beyond what one answer names.
func (s *shape) check(body []byte) (wrong message.FieldErrors, bad map[string]bool) {
	w := walker{body: body}
	w.space()
	w.value(s)
	return w.wrong, w.bad
}

// walker goes through a body that is known to be valid JSON. It recurses only
// as deep as the shape does.
type walker struct {
	body  []byte
	at    int
	path  []segment
	wrong message.FieldErrors
	bad   map[string]bool
}

// segment is one step of a path: a name, or an element's index.
type segment struct {
	name  []byte
	index int // negative for a name
}

func (w *walker) value(s *shape) {
	switch w.body[w.at] {
	case '"':
		w.text(s)
	case '[':
		if s.kind != kindList {
			w.mismatch(s)
			return
		}
		w.list(s)
	case '{':
		if s.kind != kindObject && s.kind != kindMembers && s.kind != kindTarget {
			w.mismatch(s)
			return
		}
		w.object(s)
	case 'n':
		w.skip()
	case 't', 'f':
		if s.kind != kindBool {
			w.mismatch(s)
			return
		}
		w.skip()
	default:
		start := w.at
		w.skip()
		if s.kind != kindWhole {
			w.add("want %s", wanted[s.kind])
		} else if n, err := strconv.Atoi(string(w.body[start:w.at])); err != nil || n < s.least || n > s.most {
			w.add("want %s from %d to %d", wanted[kindWhole], s.least, s.most)
		}
	}
}

func (w *walker) text(s *shape) {
	raw, whole := w.str()
	if !whole {
		w.add(halfPair)
		return
	}
	switch s.kind {
	case kindTarget:
	case kindText:
		if s.most > 0 {
			w.length(s, raw)
		}
	case kindBytes:
		var b []byte
		if json.Unmarshal(raw, &b) != nil {
			w.add("is not valid base64")
		}
	case kindTime:
		if !isTime(string(unquoted(raw))) {
			w.add("want %s", wanted[kindTime])
		}
	default:
		w.add("want %s", wanted[s.kind])
	}
}

// length judges a text that is looked for in the ledger, where no NUL can be.
func (w *walker) length(s *shape, raw []byte) {
	text := unquoted(raw)
	if n := utf8.RuneCount(text); n < s.least || n > s.most || bytes.IndexByte(text, 0) >= 0 {
		w.add("want %d to %d characters without NUL", s.least, s.most)
	}
}

// timeText is the grammar of RFC 3339 §5.6 with upper-case letters: Go also takes
// a decimal comma, hours of one digit, and offsets that it can't write.
var timeText = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// isTime says whether text is a time that can be kept and shown in any zone, and
// not the one that stands for none in Go.
func isTime(text string) bool {
	t, err := time.Parse(time.RFC3339, text)
	return err == nil && timeText.MatchString(text) && t.Year() >= 1970 && t.Year() <= 9998
}

func (w *walker) list(s *shape) {
	w.at++ // [
	w.space()
	for i := 0; w.body[w.at] != ']'; i++ {
		w.path = append(w.path, segment{index: i})
		w.present(s.elem)
		w.path = w.path[:len(w.path)-1]
		w.separator()
	}
	w.at++
}

func (w *walker) object(s *shape) {
	w.at++ // {
	w.space()
	var seen uint64
	var members map[string]bool
	if s.kind == kindMembers {
		members = map[string]bool{}
	}
	for w.body[w.at] != '}' {
		name, whole := w.name()
		w.path = append(w.path, segment{name, -1})
		if !whole {
			w.add(halfPair)
		}
		f, known := s.fields[string(name)]
		switch {
		case members != nil:
			if members[string(name)] {
				w.add("is repeated")
			}
			members[string(name)] = true
			w.present(s.elem)
		case !known:
			w.add("is unknown")
			w.skip()
		default:
			if seen&(1<<f.bit) != 0 {
				w.add("is repeated")
			}
			seen |= 1 << f.bit
			w.value(f.shape)
		}
		w.path = w.path[:len(w.path)-1]
		w.separator()
	}
	w.at++
}

// present reads a value that can't be left out, and so can't be null: an element,
// or a member whose name the client chose.
func (w *walker) present(s *shape) {
	if w.body[w.at] == 'n' {
		w.mismatch(s)
		return
	}
	w.value(s)
}

// name reads a member's name up to its value.
func (w *walker) name() (name []byte, whole bool) {
	raw, whole := w.str()
	w.space()
	w.at++ // :
	w.space()
	return unquoted(raw), whole
}

// unquoted is what a string says.
func unquoted(raw []byte) []byte {
	if plain := raw[1 : len(raw)-1]; bytes.IndexByte(plain, '\\') < 0 {
		return plain
	}
	var unescaped string
	_ = json.Unmarshal(raw, &unescaped) // it is valid JSON
	return []byte(unescaped)
}

// str reads a string with its quotes. It isn't whole when it has half a surrogate
// pair, which encoding/json would silently replace.
func (w *walker) str() (raw []byte, whole bool) {
	start := w.at
	whole = true
	for w.at++; w.body[w.at] != '"'; w.at++ {
		if w.body[w.at] != '\\' {
			continue
		}
		w.at++
		if w.body[w.at] != 'u' {
			continue
		}
		r := w.escaped(w.at + 1)
		w.at += 4
		if !utf16.IsSurrogate(r) {
			continue
		}
		if next := w.at + 1; w.body[next] == '\\' && w.body[next+1] == 'u' &&
			utf16.DecodeRune(r, w.escaped(next+2)) != utf8.RuneError {
			w.at += 6
		} else {
			whole = false
		}
	}
	w.at++
	return w.body[start:w.at], whole
}

func (w *walker) escaped(at int) rune {
	n, _ := strconv.ParseUint(string(w.body[at:at+4]), 16, 32) // it is valid JSON
	return rune(n)
}

// separator reads what stands between two elements or after the last.
func (w *walker) separator() {
	w.space()
	if w.body[w.at] == ',' {
		w.at++
		w.space()
	}
}

func (w *walker) space() {
	for w.at < len(w.body) {
		switch w.body[w.at] {
		case ' ', '\t', '\r', '\n':
			w.at++
		default:
			return
		}
	}
}

// skip passes a value over, however deep it is.
func (w *walker) skip() {
	depth := 0
	for {
		switch c := w.body[w.at]; c {
		case '"':
			for w.at++; w.body[w.at] != '"'; w.at++ {
				if w.body[w.at] == '\\' {
					w.at++
				}
			}
			w.at++
		case '[', '{':
			depth++
			w.at++
		case ']', '}':
			depth--
			w.at++
		case ',', ':', ' ', '\t', '\r', '\n':
			w.at++
		default:
			for w.at < len(w.body) && strings.IndexByte(",]} \t\r\n", w.body[w.at]) < 0 {
				w.at++
			}
		}
		if depth == 0 {
			return
		}
	}
}

func (w *walker) mismatch(s *shape) {
	w.add("want %s", wanted[s.kind])
	w.skip()
}

func (w *walker) add(format string, args ...any) {
	if w.bad == nil {
		w.bad = map[string]bool{}
	}
	w.bad[string(w.path[0].name)] = true // the body itself is an object
	if len(w.wrong) < ingest.MaxProblems {
		w.wrong = append(w.wrong, message.FieldError{Field: w.field(), Problem: fmt.Sprintf(format, args...)})
	}
}

func (w *walker) field() string {
	var path string
	for _, s := range w.path {
		if s.index >= 0 {
			path += fmt.Sprintf("[%d]", s.index)
		} else {
			path = ingest.MemberPath(path, string(s.name))
		}
	}
	return path
}
