package registrytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// User and Password are who may push and pull where a registry asks.
const (
	User     = "me"
	Password = "right"
)

// passwordFile has Password, hashed by bcrypt with the least cost.
const passwordFile = User + ":$2b$05$avPRSxHph0chlfkId5AU3O5eEhAoguw6JKtnRQ/rUkmyjb8QaUImW\n"

// Security is what a registry asks of its clients.
type Security struct {
	TLS         *Authority // serves https with a certificate of it
	ClientCerts bool       // and wants one of it too
	Basic       bool       // wants User and Password
	Tokens      *Tokens    // wants its tokens
}

func (s Security) scheme() string {
	if s.TLS != nil {
		return "https"
	}
	return "http"
}

func (s Security) login() authn.Authenticator {
	if s.Basic {
		return &authn.Basic{Username: User, Password: Password}
	}
	return authn.Anonymous
}

func (s Security) client(t testing.TB) *http.Transport {
	c := &tls.Config{}
	if s.TLS != nil {
		c.RootCAs = s.TLS.pool
		if s.ClientCerts {
			c.Certificates = []tls.Certificate{s.TLS.issue(t)}
		}
	}
	return &http.Transport{TLSClientConfig: c}
}

// http returns what to add to the http part of the registry's configuration.
func (s Security) http(t testing.TB, dir string) string {
	if s.TLS == nil {
		return ""
	}
	cert, key := s.TLS.Issue(t, dir)
	clients := ""
	if s.ClientCerts {
		clients = fmt.Sprintf(", clientcas: [%q]", s.TLS.File(t, dir))
	}
	return fmt.Sprintf(", tls: {certificate: %q, key: %q%s}", cert, key, clients)
}

func (s Security) auth(t testing.TB, dir string) string {
	switch {
	case s.Basic:
		file := filepath.Join(dir, "htpasswd")
		writeFile(t, file, []byte(passwordFile))
		return fmt.Sprintf("auth: {htpasswd: {realm: test, path: %q}}\n", file)
	case s.Tokens != nil:
		return fmt.Sprintf("auth: {token: {realm: %q, service: %q, issuer: %q, rootcertbundle: %q}}\n",
			s.Tokens.URL, tokenService, tokenIssuer, s.Tokens.authority.File(t, dir))
	}
	return ""
}

// Authority issues certificates.
type Authority struct {
	cert *x509.Certificate
	der  []byte
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

// NewAuthority makes an authority that nobody trusts yet.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{key: newKey(t), pool: x509.NewCertPool()}
	form := certificate("authority")
	form.IsCA, form.BasicConstraintsValid, form.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	a.der, a.cert = sign(t, form, form, a.key, a.key)
	a.pool.AddCert(a.cert)
	return a
}

// File writes the authority's certificate into dir and returns its path.
func (a *Authority) File(t testing.TB, dir string) string {
	t.Helper()
	file := filepath.Join(dir, "ca.pem")
	writeFile(t, file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.der}))
	return file
}

// Issue writes a certificate for loopback servers and for clients, and its key.
func (a *Authority) Issue(t testing.TB, dir string) (cert, key string) {
	t.Helper()
	c := a.issue(t)
	raw, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeFile(t, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}))
	writeFile(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
	return cert, key
}

func (a *Authority) issue(t testing.TB) tls.Certificate {
	key := newKey(t)
	form := certificate("127.0.0.1")
	form.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	form.DNSNames = []string{"registry.invalid"} // by which only a proxy finds it
	form.KeyUsage = x509.KeyUsageDigitalSignature
	form.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, _ := sign(t, form, a.cert, key, a.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certificate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
}

func sign(t testing.TB, form, parent *x509.Certificate, key, by *ecdsa.PrivateKey) ([]byte, *x509.Certificate) {
	der, err := x509.CreateCertificate(rand.Reader, form, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return der, cert
}

func writeFile(t testing.TB, file string, data []byte) {
	t.Helper()
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
