// Package sim simulates the providers that Stormpost hands messages to: an
// SMTP server, Amazon SES, Resend, Postmark, SendGrid, FCM's HTTP v1 API and the OAuth 2.0 token
// endpoint before it, APNs, and a browser's push service with the browsers behind
// it.
// `stormpost dev` runs them behind an inbox page, and tests use them as judges.
//
// Three properties make them fit to judge by:
//
//   - What a simulator takes is on disk before it answers, in a [Store], one
//     line for each recipient. So after any kill the file tells what a provider
//     has, whatever the sender believes. See [ReadTaken].
//   - They are strict where the protocols are: a message with a bare line feed,
//     an unknown field or a token that has expired is refused.
//   - They misbehave on request, at each step of the conversation, and that can
//     be changed while they run. See [Fault].
//
// Each server owns its goroutines, bounds its connections, and waits for all of
// them in Close. Everything here is safe for concurrent use.
package sim
