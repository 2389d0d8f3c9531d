package smtp

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/devstack"
)

// peerPatience bounds what a server of the test must do soon.
const peerPatience = time.Minute

// The account that both servers know.
const (
	peerUser     = "shop@sender.example"
	peerPassword = "CANARY s3cret"
)

// peers are real mail servers: a Postfix that delivers into a maildir, and a
// Dovecot submission service that relays to it, and checks passwords and access
// tokens for both. All that they own is in one folder.
//
//	submission ──────────────┐
//	loginOnly ───────────────┤ Postfix ── maildir
//	dovecot ── relay port ───┘
type peers struct {
	dir  string
	pool *x509.CertPool // trusts the certificate that both have, for localhost

	postfix, dovecot *daemon
	owner, nobody    *user.User // of Postfix's files, of what is delivered
	submission       string     // Postfix's address for clients: STARTTLS, AUTH
	loginOnly        string     // the same, with AUTH LOGIN alone
	relay            string     // for Dovecot: neither

	issuer *issuer

	seen map[string]letter // by file name in the maildir
}

// startPeers starts both, with all mechanisms, and has them stopped.
func startPeers(t *testing.T) *peers {
	t.Helper()
	if testing.Short() {
		t.Skip("runs Postfix and Dovecot")
	}
	if os.Geteuid() != 0 {
		t.Fatal("Postfix's master runs as root alone: run this test as root, or the quick ones with -short")
	}
	s := &peers{dir: t.TempDir(), issuer: startIssuer(t), seen: make(map[string]letter)}
	var err error
	if s.nobody, err = user.Lookup("nobody"); err != nil {
		t.Fatalf("Postfix delivers as nobody: %v", err)
	}
	// Postfix's and Dovecot's own users must get at what is theirs.
	for _, dir := range []string{s.dir, filepath.Dir(s.dir)} {
		if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // enter, not list
			t.Fatal(err)
		}
	}
	s.submission, s.loginOnly, s.relay = freeAddr(t), freeAddr(t), freeAddr(t)
	s.certify(t)
	s.preparePostfix(t)
	s.prepareDovecot(t)
	t.Cleanup(func() {
		for _, d := range []*daemon{s.postfix, s.dovecot} {
			if d.pid != 0 {
				d.stop(t, syscall.SIGTERM)
			}
			if t.Failed() {
				t.Logf("the end of %s's log:\n%s", d.name, d.tail())
			}
		}
	})
	s.dovecot.start(t)
	s.postfix.start(t)
	return s
}

// program finds a server's program, which may be in a folder for root's alone.
func program(t *testing.T, name string) string {
	t.Helper()
	for _, found := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name, "/opt/homebrew/sbin/" + name} {
		if path, err := exec.LookPath(found); err == nil {
			return path
		}
	}
	t.Fatalf("%s is missing: make deps", name)
	return ""
}

func freeAddr(t *testing.T) string {
	t.Helper()
	port, err := devstack.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

func put(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755) //nolint:gosec // other users' servers read it
	if err == nil {
		err = os.WriteFile(path, []byte(text), mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// certify makes tls.pem, a certificate and its key.
func (s *peers) certify(t *testing.T) {
	t.Helper()
	cert, pool := certificate(t, "localhost")
	s.pool = pool
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, block := range []*pem.Block{{Type: "PRIVATE KEY", Bytes: key}, {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}} {
		if err := pem.Encode(&b, block); err != nil {
			t.Fatal(err)
		}
	}
	put(t, filepath.Join(s.dir, "tls.pem"), b.String(), 0o600)
}

// preparePostfix writes main.cf and master.cf (postconf(5), master(5)). Mail for
// anybody at reader.example but gone@ is delivered, to one maildir; no other is
// taken.
func (s *peers) preparePostfix(t *testing.T) {
	t.Helper()
	postfix, etc := program(t, "postfix"), filepath.Join(s.dir, "postfix")
	out, err := exec.Command(program(t, "postconf"), "-d", "-h", "daemon_directory", "mail_owner").Output() //nolint:gosec // a program of the system
	if err != nil {
		t.Fatalf("postconf: %v", err)
	}
	built := strings.Fields(string(out))
	if s.owner, err = user.Lookup(built[1]); err != nil {
		t.Fatalf("Postfix's own user: %v", err)
	}
	put(t, filepath.Join(etc, "boxes"), "if !/^gone@/\n/./ all/\nendif\n", 0o644)
	put(t, filepath.Join(etc, "main.cf"), `compatibility_level = 2
queue_directory = `+s.dir+`/q
data_directory = `+s.dir+`/data
maillog_file = `+s.dir+`/postfix.log
maillog_file_prefixes = `+s.dir+`
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.reader.example
mydestination =
alias_maps =
alias_database =
disable_dns_lookups = yes
smtpd_peername_lookup = no
default_transport = error:nothing is sent on
virtual_mailbox_domains = reader.example
virtual_mailbox_base = `+s.dir+`/mail
virtual_mailbox_maps = regexp:`+etc+`/boxes
virtual_uid_maps = static:`+s.nobody.Uid+`
virtual_gid_maps = static:`+s.nobody.Gid+`
virtual_mailbox_limit = 0
smtpd_relay_restrictions = reject_unauth_destination
smtpd_tls_chain_files = `+s.dir+`/tls.pem
smtpd_sasl_type = dovecot
smtpd_sasl_path = private/auth
smtpd_error_sleep_time = 0
smtputf8_enable = yes
# What a kill interrupted is delivered at once.
queue_run_delay = 1s
minimal_backoff_time = 1s
maximal_backoff_time = 1s
transport_retry_time = 1s
`, 0o644)
	client := " inet n - n - - smtpd\n -o smtpd_tls_security_level=encrypt -o smtpd_sasl_auth_enable=yes" +
		" -o smtpd_client_restrictions=permit_sasl_authenticated,reject"
	put(t, filepath.Join(etc, "master.cf"), s.submission+client+"\n"+
		s.loginOnly+client+" -o smtpd_sasl_mechanism_filter=login\n"+
		s.relay+` inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
virtual unix - n n - - virtual
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
proxymap unix - - n - - proxymap
postlog unix-dgram n - n - 1 postlogd
`, 0o644)
	for dir, who := range map[string]*user.User{"data": s.owner, "mail": s.nobody, "q": nil} {
		dir = filepath.Join(s.dir, dir)
		err := os.Mkdir(dir, 0o755) //nolint:gosec // Postfix checks that it is so
		if err == nil && who != nil {
			err = chown(dir, who)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// It makes the folders of the queue.
	ctx, cancel := context.WithTimeout(t.Context(), peerPatience)
	defer cancel()
	if out, err := exec.CommandContext(ctx, postfix, "-c", etc, "check").CombinedOutput(); err != nil { //nolint:gosec // a program of the system
		t.Fatalf("postfix check: %v\n%s", err, out)
	}
	s.postfix = &daemon{
		name: "postfix", addr: s.submission, log: filepath.Join(s.dir, "postfix.log"), errors: filepath.Join(s.dir, "postfix.err"),
		command: []string{filepath.Join(built[0], "master"), "-c", etc, "-d"},
	}
}

// prepareDovecot writes dovecot.conf. The accounts' home folders stay empty.
func (s *peers) prepareDovecot(t *testing.T) {
	t.Helper()
	etc := filepath.Join(s.dir, "dovecot")
	put(t, filepath.Join(etc, "users"), peerUser+":{PLAIN}"+peerPassword+"\n", 0o644)
	put(t, filepath.Join(etc, "oauth2"), `introspection_url = `+s.issuer.srv.URL+`/
introspection_mode = auth
username_attribute = username
active_attribute = active
active_value = true
`, 0o644)
	s.dovecot = &daemon{
		name: "dovecot", addr: freeAddr(t), log: filepath.Join(s.dir, "dovecot.log"), errors: filepath.Join(s.dir, "dovecot.err"),
		command: []string{program(t, "dovecot"), "-F", "-c", filepath.Join(etc, "dovecot.conf")},
	}
	s.configureDovecot(t, "plain login xoauth2 oauthbearer")
}

// configureDovecot says which mechanisms Dovecot offers from its next start on.
func (s *peers) configureDovecot(t *testing.T, mechanisms string) {
	t.Helper()
	etc := filepath.Join(s.dir, "dovecot")
	put(t, filepath.Join(etc, "dovecot.conf"), `base_dir = `+s.dir+`/run
state_dir = `+s.dir+`/run
log_path = `+s.dovecot.log+`
protocols = submission
listen = 127.0.0.1
hostname = submit.reader.example
ssl = required
ssl_cert = <`+s.dir+`/tls.pem
ssl_key = <`+s.dir+`/tls.pem
auth_mechanisms = `+mechanisms+`
auth_failure_delay = 0
mail_location = maildir:`+s.dir+`/home/%u
first_valid_uid = 1
passdb {
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = `+etc+`/oauth2
}
passdb {
  driver = passwd-file
  mechanisms = plain login
  args = `+etc+`/users
}
userdb {
  driver = static
  args = uid=`+s.nobody.Uid+` gid=`+s.nobody.Gid+` home=`+s.dir+`/home/%u
}
submission_relay_host = 127.0.0.1
submission_relay_port = `+port(s.relay)+`
service submission-login {
  inet_listener submission {
    address = 127.0.0.1
    port = `+port(s.dovecot.addr)+`
  }
}
service auth {
  unix_listener postfix {
    path = `+s.dir+`/q/private/auth
    mode = 0600
    user = `+s.owner.Username+`
  }
}
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
`, 0o644)
}

func chown(dir string, u *user.User) error {
	uid, errU := strconv.Atoi(u.Uid)
	gid, errG := strconv.Atoi(u.Gid)
	return errors.Join(errU, errG, os.Chown(dir, uid, gid))
}

// issuer knows which access token is good, and tells Dovecot (RFC 7662).
type issuer struct {
	srv *httptest.Server

	mu      sync.Mutex
	good    string
	refused int
}

func startIssuer(t *testing.T) *issuer {
	i := &issuer{}
	i.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		ok := r.Header.Get("Authorization") == "Bearer "+i.good
		if !ok {
			i.refused++
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"active": ok, "username": peerUser})
	}))
	t.Cleanup(i.srv.Close)
	return i
}

// set makes token the only good one.
func (i *issuer) set(token string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.good = token
}

// refusals is how often another token was shown.
func (i *issuer) refusals() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.refused
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(peerPatience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", peerPatience, what)
		}
	}
}
