package ses

import (
	"fmt"
	"regexp"

	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// MaxBytes is SES's limit for a message with its attachments, as API v2 takes
// it: https://docs.aws.amazon.com/ses/latest/dg/quotas.html
const MaxBytes = 40 << 20

// Config says which account to use and how. Name, Region, AccessKeyID and
// SecretKey are required; BaseURL is the region's endpoint by default.
type Config struct {
	overhttp.Options
	Region           string // as eu-west-1
	AccessKeyID      string
	SecretKey        string
	SessionToken     string // of temporary credentials, else empty
	ConfigurationSet string // whose events tell of deliveries and bounces; may be empty
}

var (
	regionForm = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]{2,10}){1,3}-[0-9]{1,2}$`)
	setForm    = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

// check fills in defaults. It fails with message.FieldErrors that show no key.
func (c *Config) check() (errs message.FieldErrors) {
	add := func(field, problem string) {
		errs = append(errs, message.FieldError{Field: field, Problem: problem})
	}
	region := regionForm.MatchString(c.Region)
	if !region {
		add("region", "want a region, as eu-west-1")
	}
	if c.BaseURL == "" && region {
		c.BaseURL = fmt.Sprintf("https://email.%s.amazonaws.com", c.Region)
	}
	for field, key := range map[string]string{"access_key_id": c.AccessKeyID, "secret_key": c.SecretKey} {
		if problem := overhttp.CheckKey(key); problem != "" {
			add(field, problem)
		}
	}
	if c.SessionToken != "" {
		if problem := overhttp.CheckKey(c.SessionToken); problem != "" {
			add("session_token", problem)
		}
	}
	if c.ConfigurationSet != "" && !setForm.MatchString(c.ConfigurationSet) {
		add("configuration_set", "want up to 64 letters, digits, hyphens and underscores")
	}
	return errs
}
