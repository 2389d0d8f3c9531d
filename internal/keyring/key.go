// Package keyring makes API keys and verifies them from a local snapshot, so
// that a request can be signed in with the database away, also after a restart.
//
// A key is text that its owner alone knows:
//
//	sp_live_ k3v9x2ab QZ…  mode, 8 characters of public prefix, 26 of secret
//
// The prefix finds the key, and may be shown and logged. The secret has 130
// random bits; only SHA-256 of the whole text is stored, which for a random
// secret needs no slow hash.
package keyring

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
)

const (
	livePrefix   = "sp_live_"
	testPrefix   = "sp_test_"
	prefixLength = 8
	keyLength    = len(livePrefix) + prefixLength + 26
)

// Scope is one thing that a key allows.
type Scope string

// The scopes.
const (
	Send     Scope = "send"     // submit, and cancel what was submitted
	Read     Scope = "read"     // see the tenant's own messages and streams
	Operator Scope = "operator" // see and run everything
)

// ParseScope reads a scope by its name.
func ParseScope(s string) (Scope, error) {
	switch scope := Scope(s); scope {
	case Send, Read, Operator:
		return scope, nil
	}
	return "", fmt.Errorf("unknown scope %q: want send, read or operator", s)
}

// Record is what is stored of a key.
type Record struct {
	ID         int64
	Tenant     int32 // 0 for an operator's key that belongs to no tenant
	TenantName string
	Prefix     string   // the 8 public characters
	Hash       [32]byte // SHA-256 of the whole text
	Scopes     []Scope
	Test       bool     // what it submits never reaches a provider
	Domains    []string // the tenant's sender domains; see Principal
	Revoked    bool
}

// Principal is who a verified key stands for. It is shared: nobody changes it.
type Principal struct {
	Tenant     int32
	TenantName string
	KeyID      int64
	Prefix     string // the key's 8 public characters
	Test       bool
	// Domains are those that the tenant may send from: "example.com" is that
	// domain alone, ".example.com" any domain below it, "*" any at all.
	Domains []string
	Scopes  []Scope
}

// Can says whether the key allows s. No scope implies another.
func (p *Principal) Can(s Scope) bool { return slices.Contains(p.Scopes, s) }

// Mint makes a new key: the text to hand out, once, and the parts of its
// record that follow from it (Prefix, Hash, Test).
func Mint(test bool) (text string, rec Record) {
	mode := livePrefix
	if test {
		mode = testPrefix
	}
	prefix := strings.ToLower(rand.Text()[:prefixLength])
	text = mode + prefix + rand.Text()
	return text, Record{Prefix: prefix, Hash: sha256.Sum256([]byte(text)), Test: test}
}

// prefixOf is the public prefix in text, and whether text has a key's shape.
func prefixOf(text string) (string, bool) {
	if len(text) != keyLength || !strings.HasPrefix(text, livePrefix) && !strings.HasPrefix(text, testPrefix) {
		return "", false
	}
	return text[len(livePrefix):][:prefixLength], true
}
