package sim

import "net/http"

// fcmError is an error as FCM answers it: google.rpc.Status in JSON
// (https://firebase.google.com/docs/cloud-messaging/error-codes).
type fcmError struct {
	status  int
	name    string // google.rpc.Code
	code    string // FCM's ErrorCode, if it is one of FCM's own
	message string
	field   string // the request's, for google.rpc.BadRequest
}

// fcmErrors are the documented errors by ErrorCode
// (https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode).
var fcmErrors = map[string]fcmError{
	"INVALID_ARGUMENT":       {status: 400, name: "INVALID_ARGUMENT", code: "INVALID_ARGUMENT", message: "Request contains an invalid argument."},
	"THIRD_PARTY_AUTH_ERROR": {status: 401, name: "UNAUTHENTICATED", code: "THIRD_PARTY_AUTH_ERROR", message: "Auth error from APNS or Web Push Service"},
	"SENDER_ID_MISMATCH":     {status: 403, name: "PERMISSION_DENIED", code: "SENDER_ID_MISMATCH", message: "SenderId mismatch"},
	"UNREGISTERED":           {status: 404, name: "NOT_FOUND", code: "UNREGISTERED", message: "Requested entity was not found."},
	"QUOTA_EXCEEDED":         {status: 429, name: "RESOURCE_EXHAUSTED", code: "QUOTA_EXCEEDED", message: "Quota exceeded."},
	"INTERNAL":               {status: 500, name: "INTERNAL", code: "INTERNAL", message: "Internal error encountered."},
	"UNAVAILABLE":            {status: 503, name: "UNAVAILABLE", code: "UNAVAILABLE", message: "The service is currently unavailable."},
}

// unauthenticated is about the bearer token, so it is not one of FCM's own.
var unauthenticated = fcmError{
	status:  http.StatusUnauthorized,
	name:    "UNAUTHENTICATED",
	message: "Request had invalid authentication credentials. Expected OAuth 2 access token.",
}

func badField(field, problem string) fcmError {
	e := fcmErrors["INVALID_ARGUMENT"]
	e.message, e.field = problem, field
	return e
}

// faultError is the error that a fault's Answer asks for: by Error, by Code, or
// by both for what isn't documented.
func faultError(x *Fault) fcmError {
	e, ok := fcmErrors[x.Error]
	switch {
	case ok:
	case x.Error != "":
		e = fcmError{name: "UNKNOWN", code: x.Error, message: "As simulated."}
	case x.Code == http.StatusUnauthorized:
		e = unauthenticated
	default:
		e = fcmError{name: "UNKNOWN", message: "As simulated."}
		for _, known := range fcmErrors {
			if known.status == x.Code {
				e = known
			}
		}
	}
	if x.Code != 0 {
		e.status = x.Code
	}
	return e
}

func answerFCM(w http.ResponseWriter, e fcmError) {
	var details []any
	if e.code != "" {
		details = append(details, map[string]string{
			"@type":     "type.googleapis.com/google.firebase.fcm.v1.FcmError",
			"errorCode": e.code,
		})
	}
	if e.field != "" {
		details = append(details, map[string]any{
			"@type":           "type.googleapis.com/google.rpc.BadRequest",
			"fieldViolations": []any{map[string]string{"field": e.field, "description": e.message}},
		})
	}
	status := map[string]any{"code": e.status, "message": e.message, "status": e.name}
	if details != nil {
		status["details"] = details
	}
	writeJSON(w, e.status, map[string]any{"error": status})
}
