package sim

import (
	"bufio"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	inboxRows      = 200 // on the page; GET /messages gives all that is stored
	inboxMaxFaults = 64 << 10
)

//go:embed inbox.html inbox.css
var inboxFiles embed.FS

// Inbox shows what a Store has taken, for people and for programs:
//
//	GET  /                 a page with the newest messages
//	GET  /messages         a JSON array of all that is stored, newest first
//	GET  /messages/{n}     a page with one message as text
//	GET  /faults           the servers' faults
//	POST /faults           {"server": NAME, "faults": [Fault…]} replaces one server's
//
// The first two take ?channel=, ?to= (a part of the recipient) and ?limit=. It
// has no sign-in: it is for the loopback interface.
type Inbox struct {
	store  *Store
	faults map[string]*Faults
	log    *slog.Logger
	page   *template.Template
	http.Handler
}

// NewInbox makes the handler. faults are the servers whose misbehaviour it can
// change, by name.
func NewInbox(store *Store, faults map[string]*Faults, log *slog.Logger) *Inbox {
	in := &Inbox{store: store, faults: faults, log: log}
	in.page = template.Must(template.ParseFS(inboxFiles, "inbox.html"))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", in.list)
	mux.HandleFunc("GET /messages", in.messages)
	mux.HandleFunc("GET /messages/{n}", in.message)
	mux.HandleFunc("GET /faults", in.getFaults)
	mux.HandleFunc("POST /faults", in.setFaults)
	mux.HandleFunc("GET /inbox.css", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFileFS(w, r, inboxFiles, "inbox.css")
	})
	in.Handler = secure(http.NewCrossOriginProtection().Handler(mux))
	return in
}

// secure keeps what a message holds from acting in the browser, even if it
// should slip through the template's escaping.
func secure(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cache-Control", "no-store")
		h.ServeHTTP(w, r)
	})
}

// row is a message in GET /messages.
type row struct {
	Channel    string    `json:"channel"`
	To         string    `json:"to"`
	Subject    string    `json:"subject"`
	MessageID  string    `json:"message_id"`
	ReceivedAt time.Time `json:"received_at"`
}

// query reads a list's parameters. fallback is the limit if none is given.
func query(r *http.Request, fallback int) (limit int, keep func(*Taken) bool, err error) {
	q := r.URL.Query()
	limit = fallback
	if s := q.Get("limit"); s != "" {
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 {
			return 0, nil, fmt.Errorf("limit %q: want a number from 1", s)
		}
	}
	channel, to := q.Get("channel"), q.Get("to")
	return limit, func(t *Taken) bool {
		return (channel == "" || t.Channel == channel) && strings.Contains(t.To, to)
	}, nil
}

// errEnough ends a list.
var errEnough = errors.New("enough")

// messages streams: the file may be longer than memory.
func (in *Inbox) messages(w http.ResponseWriter, r *http.Request) {
	limit, keep, err := query(r, 0)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	out := bufio.NewWriterSize(w, 64<<10)
	rows, sep := 0, byte('[')
	err = in.store.Newest(func(t *Taken) error {
		if r.Context().Err() != nil {
			return errEnough
		}
		if !keep(t) {
			return nil
		}
		b, err := json.Marshal(row{t.Channel, t.To, t.Subject, t.MessageID, t.ReceivedAt})
		if err != nil {
			return err
		}
		_ = out.WriteByte(sep)
		if _, err := out.Write(b); err != nil {
			return errEnough // the client has gone
		}
		rows, sep = rows+1, ','
		if rows == limit {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		in.log.Error("inbox failed", "error", err)
		panic(http.ErrAbortHandler) // a list that is cut short mustn't look whole
	}
	if rows == 0 {
		_ = out.WriteByte('[')
	}
	_, _ = out.WriteString("]\n")
	_ = out.Flush() // the client may have gone
}

func (in *Inbox) list(w http.ResponseWriter, r *http.Request) {
	limit, keep, err := query(r, inboxRows)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	list := in.store.List(limit, keep)
	faults, err := json.MarshalIndent(in.faultLists(), "", "  ")
	if err != nil {
		in.fail(w, err)
		return
	}
	in.render(w, map[string]any{"Count": in.store.Count(), "List": list, "Faults": string(faults), "Host": r.Host})
}

func (in *Inbox) message(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.PathValue("n"))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	t, ok, err := in.store.Get(n)
	if err != nil {
		in.fail(w, err)
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	raw := strings.ToValidUTF8(string(t.Raw), "\uFFFD")
	in.render(w, map[string]any{"One": Numbered{n, t}, "Raw": raw, "Cut": t.Size > len(t.Raw)})
}

func (in *Inbox) render(w http.ResponseWriter, data any) {
	var page strings.Builder
	if err := in.page.Execute(&page, data); err != nil {
		in.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write([]byte(page.String())) // the browser may have gone
}

func (in *Inbox) fail(w http.ResponseWriter, err error) {
	in.log.Error("inbox failed", "error", err)
	http.Error(w, "internal error", http.StatusInternalServerError)
}

func (in *Inbox) faultLists() map[string][]Fault {
	lists := make(map[string][]Fault, len(in.faults))
	for name, f := range in.faults {
		lists[name] = f.ListFaults()
	}
	return lists
}

func (in *Inbox) getFaults(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, in.faultLists())
}

func (in *Inbox) setFaults(w http.ResponseWriter, r *http.Request) {
	var change struct {
		Server string  `json:"server"`
		Faults []Fault `json:"faults"`
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, inboxMaxFaults))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&change); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f, ok := in.faults[change.Server]
	if !ok {
		http.Error(w, fmt.Sprintf("server %q: no such server", change.Server), http.StatusBadRequest)
		return
	}
	if err := f.SetFaults(change.Faults...); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	in.getFaults(w, r)
}
