// Package judge says what became of messages, from two kinds of files alone:
// the client's, with every message that was answered 202, and the simulated
// providers', with every message that they took. It imports nothing of what it
// judges.
//
// A message is known by its key, which the client also gave it as subject or
// title; so the program's own ids can't hide a double. The API is asked for one
// thing only: what it says of each message, meanwhile and in the end. That a
// message ended unsent, or is in doubt, counts for nothing where it can't be: a
// message without a short life can't have expired, and a doubt needs a harm (Harms)
// that was done while the message was in hand. Whoever did the harm says what and
// when, not the program.
package judge
