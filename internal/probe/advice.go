package probe

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"millrace.dev/millrace/internal/config"
	"millrace.dev/millrace/internal/scrape"
)

// advise adds to why an endpoint gives no answer what to do about it, where that is known.
func (t *target) advise(err error) error {
	if err == nil {
		return nil
	}
	if next := t.next(err); next != "" {
		return fmt.Errorf("%w: %s", err, next)
	}
	return err
}

func (t *target) next(err error) string {
	var (
		status    scrape.StatusError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
	)
	switch text := err.Error(); {
	case errors.As(err, &status) && (status == 401 || status == 403):
		if t.spec.APIKey == (config.APIKey{}) {
			return "it asks for a key: set apiKey"
		}
		return "it does not take the key of apiKey"
	case errors.As(err, &status) && status >= 300 && status < 400:
		return "it is elsewhere: set the URL to where that is"
	case errors.As(err, &authority):
		return "set tls.ca to the file of the authority that signed it"
	case errors.As(err, &host):
		return "set tls.serverName to a name in its certificate"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "give it another certificate"
	case errors.As(err, &record):
		return "it speaks no TLS: leave tls out"
	case strings.Contains(text, "tls: certificate required"), strings.Contains(text, "tls: bad certificate"):
		return "it asks for a certificate that it trusts: set tls.cert and tls.key"
	case strings.Contains(text, "malformed HTTP response \"\\x15\\x03"):
		return "it speaks TLS: set tls"
	}
	return ""
}
