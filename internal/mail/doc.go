// Package mail composes the RFC 5322 message of an email from its content, and
// reads mailboxes, for every provider of email. The Message-ID is a function of
// the message's id alone; with the same time the bytes are the same.
package mail
