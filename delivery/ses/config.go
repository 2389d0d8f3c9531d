package ses

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/message"
	"github.com/stormpost/stormpost/internal/overhttp"
)

// MaxBytes is SES's limit for a message with its attachments, as API v2 takes
// it: https://docs.aws.amazon.com/ses/latest/dg/quotas.html
const MaxBytes = 40 << 20

// Config says which account to use and how. Name, Region and Key
// are required; BaseURL is the region's endpoint by default.
type Config struct {
	overhttp.Options
	Region           string                 // as eu-west-1
	Key              *credential.Credential // its values are as JoinKey makes them
	ConfigurationSet string                 // whose events tell of deliveries and bounces; may be empty
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
	if c.ConfigurationSet != "" && !setForm.MatchString(c.ConfigurationSet) {
		add("configuration_set", "want up to 64 letters, digits, hyphens and underscores")
	}
	return errs
}

// JoinKey is the one value of an access key: ID:SECRET, or ID:SECRET:TOKEN for
// temporary credentials. None of the three can have a colon.
func JoinKey(id, secret, sessionToken string) string {
	return strings.TrimSuffix(id+":"+secret+":"+sessionToken, ":")
}

// CheckKey is the Check of a credential for Config.Key.
func CheckKey(value string) error {
	parts := strings.Split(value, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return errors.New("is not ID:SECRET or ID:SECRET:TOKEN")
	}
	for i, name := range []string{"access key id", "secret", "session token"}[:len(parts)] {
		if err := overhttp.CheckKey(parts[i]); err != nil {
			return fmt.Errorf("the %s %w", name, err)
		}
	}
	return nil
}

// splitKey reads a value that CheckKey has let through.
func splitKey(value string) aws.Credentials {
	parts := append(strings.SplitN(value, ":", 3), "", "", "")
	return aws.Credentials{AccessKeyID: parts[0], SecretAccessKey: parts[1], SessionToken: parts[2]}
}

// hide is the parts that are never shown; an access key's id isn't one.
func hide(value string) []string {
	c := splitKey(value)
	return []string{c.SecretAccessKey, c.SessionToken}
}
