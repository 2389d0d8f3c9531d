package httpapi

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// smallBody is what a body may take without asking for a share of memory.
const smallBody = 64 << 10

// takeBody documents and mounts an operation of operators whose body is an In, and
// whose answer an Out.
func takeBody[In, Out any](a *api, op huma.Operation, example In, use func(context.Context, *http.Request, In) (*output[Out], error)) {
	shape := shapeOf(reflect.TypeFor[In]())
	a.documentBody(&op, a.schemaOf(example), example, "application/json")
	op.Responses["200"].Content["application/json"].Schema = a.schemaOf(*new(Out))
	a.register(&op, func(w http.ResponseWriter, r *http.Request) {
		a.withBody(w, r, []string{"application/json"}, func(body []byte) {
			var in In
			wrong, err := decode(shape, body, &in)
			if err == nil && len(wrong) > 0 {
				err = wrong
			}
			if err != nil {
				a.fail(w, r, err)
				return
			}
			ctx, cancel := context.WithTimeout(r.Context(), a.Limits.Request)
			defer cancel()
			out, err := use(ctx, r, in)
			if err != nil {
				a.fail(w, r, err)
				return
			}
			writeJSON(w, http.StatusOK, "application/json", out.Body)
		})
	})
}

// withBody reads the request's whole body and calls use with it; the bytes are
// use's only until it returns. Whatever is wrong with the body is answered here.
func (a *api) withBody(w http.ResponseWriter, r *http.Request, types []string, use func(body []byte)) {
	if err := a.readAndUse(w, r, types, use); err != nil {
		a.fail(w, r, err)
	}
}

func (a *api) readAndUse(w http.ResponseWriter, r *http.Request, types []string, use func(body []byte)) error {
	if !acceptable(r.Header.Get("Content-Type"), types) {
		return newProblem(http.StatusUnsupportedMediaType, "unsupported_media_type",
			"The Content-Type has to be "+types[0]+".",
			ProblemField{"Content-Type", "want " + types[0]}).with("Accept", types[0])
	}
	in, err := a.openBody(w, r)
	if err != nil {
		return err
	}
	size := int64(-1)
	if _, plain := in.(*gzipReader); !plain {
		size = r.ContentLength
	}
	return a.read(w, in, size, a.Limits.Body, use)
}

// read reads in, which a limit bounds, and calls use with it. size is how long it
// is; below 0: nobody knows.
func (a *api) read(w http.ResponseWriter, in io.Reader, size, limit int64, use func(body []byte)) error {
	buf, ok := a.body.Get().(*bytes.Buffer)
	if !ok {
		buf = &bytes.Buffer{}
	}
	defer func() {
		if buf.Cap() <= 2*smallBody { // a large one isn't kept
			buf.Reset()
			a.body.Put(buf)
		}
	}()

	_, err := buf.ReadFrom(io.LimitReader(in, smallBody))
	if err == nil && buf.Len() == smallBody {
		// With the decoded form beside it, a large body takes twice its size, or twice
		// its limit.
		most := limit
		if size >= smallBody {
			most = min(size, limit)
		}
		if !a.memory.TryAcquire(2 * most) {
			return unavailable("Too many large requests at once. Repeat the request with the same idempotency key.")
		}
		defer a.memory.Release(2 * most)
		if most == size {
			buf.Grow(int(size) - smallBody + bytes.MinRead) // it would grow to more by itself
		}
		_, err = buf.ReadFrom(io.LimitReader(in, limit+1-smallBody))
	}
	if err != nil {
		return bodyError(err)
	}
	if int64(buf.Len()) > limit {
		return a.tooLarge()
	}
	// A client that stops sending must not keep us; but the deadline has to go
	// once the body is read, since afterwards net/http reads on to notice a
	// client that hangs up, and would take a late deadline for that.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	use(buf.Bytes())
	return nil
}

// openBody is the body's bytes, bounded as sent and, by whoever reads, as
// decoded.
func (a *api) openBody(w http.ResponseWriter, r *http.Request) (io.Reader, error) {
	if r.ContentLength > a.Limits.Body {
		return nil, a.tooLarge()
	}
	in := http.MaxBytesReader(w, r.Body, a.Limits.Body)
	switch encoding := strings.ToLower(strings.Join(r.Header.Values("Content-Encoding"), ",")); encoding {
	case "", "identity":
		return in, nil
	case "gzip":
		return &gzipReader{in: in}, nil
	}
	return nil, newProblem(http.StatusUnsupportedMediaType, "unsupported_encoding", "The Content-Encoding has to be gzip, or none.",
		ProblemField{"Content-Encoding", "want gzip, or none"}).with("Accept-Encoding", "gzip")
}

// gzipReader opens the stream at the first Read, which is under the deadline.
type gzipReader struct {
	in io.Reader
	z  *gzip.Reader
}

var errGzip = errors.New("is not valid gzip")

func (g *gzipReader) Read(b []byte) (n int, err error) {
	if g.z == nil {
		g.z, err = gzip.NewReader(g.in)
	}
	if err == nil {
		n, err = g.z.Read(b)
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %w", errGzip, err)
	}
	return n, err
}

func (a *api) tooLarge() *Problem {
	return newProblem(http.StatusRequestEntityTooLarge, "too_large",
		fmt.Sprintf("The body has more than %d bytes.", a.Limits.Body),
		ProblemField{"body", fmt.Sprintf("has more than %d bytes, also counted after gunzip", a.Limits.Body)}).with("Connection", "close")
}

func bodyError(err error) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return newProblem(http.StatusRequestEntityTooLarge, "too_large",
			fmt.Sprintf("The body has more than %d bytes.", tooLarge.Limit),
			ProblemField{"body", fmt.Sprintf("has more than %d bytes", tooLarge.Limit)})
	case errors.Is(err, os.ErrDeadlineExceeded):
		return newProblem(http.StatusRequestTimeout, "too_slow", "The body didn't arrive in time.",
			ProblemField{"body", "didn't arrive in time"}).with("Connection", "close")
	case errors.Is(err, errGzip):
		return malformed(errGzip.Error())
	}
	return malformed("didn't arrive whole")
}

// acceptable says whether a Content-Type is one of types, in UTF-8.
func acceptable(contentType string, types []string) bool {
	if slices.Contains(types, contentType) {
		return true
	}
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil || !slices.Contains(types, kind) {
		return false
	}
	charset, given := params["charset"]
	return !given || strings.EqualFold(charset, "utf-8")
}
