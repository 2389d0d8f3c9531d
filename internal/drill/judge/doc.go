// Package judge says what became of messages, from two kinds of files alone:
// the client's, with every message that was answered 202, and the simulated
// providers', with every message that they took. It imports nothing of what it
// judges.
//
// A message is known by its key, which the client also gave it as subject or
// title; so the program's own ids can't hide a double. The API is asked for one
// thing only: which messages ended unsent, or are in doubt. That counts for
// nothing where a provider has the message, or where it can't be: a message
// without a short life can't have expired.
package judge
