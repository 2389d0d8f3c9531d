// Package events reads what providers tell of messages that they took: bounces,
// complaints, deliveries. Each of them signs in another way:
//
//	SES       through Amazon SNS, RSA over named fields with a certificate of Amazon's
//	          https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html
//	SendGrid  ECDSA P-256 over timestamp and body
//	          https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/getting-started-event-webhook-security-features
//	Resend    HMAC-SHA256 over id, timestamp and body, as Standard Webhooks has it
//	          https://resend.com/docs/dashboard/webhooks/verify-webhooks-requests
//	Postmark  not at all: a user and password in the URL, sent as HTTP Basic
//	          https://postmarkapp.com/developer/webhooks/webhooks-overview
//
// Nothing is believed, nor any address asked, before that is checked. Events of
// messages that aren't ours carry no stormpost_id, and are passed over.
package events
