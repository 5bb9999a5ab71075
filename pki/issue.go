package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Init makes the files of a new cluster in dir: its authority, its secret and
// the operator's certificate. It makes dir if need be, and overwrites nothing:
// where a file exists, the error's kind is Exists and dir is as it was.
func Init(dir string) error { return initAt(dir, time.Now()) }

func initAt(dir string, now time.Time) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault(Unreadable, dir, "cannot make %s: %v", dir, err)
	}
	secret := make([]byte, clusterKeyBytes)
	rand.Read(secret)
	caKey, err := newKey()
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber: newSerial(),
		// The check value ties cluster.key to this authority, so that files of
		// two clusters that were mixed up are told apart at start, instead of
		// by a cluster that does not hear itself.
		Subject:               pkix.Name{CommonName: "baton cluster CA", SerialNumber: checkValue(secret)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return fault(Invalid, "", "cannot make the authority's certificate: %v", err)
	}
	if ca, err = x509.ParseCertificate(caDER); err != nil {
		return fault(Invalid, "", "cannot read back the authority's certificate: %v", err)
	}
	caPEM, err := encodeKey(caKey)
	if err != nil {
		return fault(Invalid, "", "cannot encode the authority's key: %v", err)
	}
	signer := &authority{cert: ca, key: caKey}
	admin, err := signer.issue(RoleAdmin, adminName, nil, now)
	if err != nil {
		return err
	}
	return writeAll(dir, append([]newFile{
		{caName + certSuffix, encodeCert(caDER), 0o644},
		{caName + keySuffix, caPEM, 0o600},
		{clusterKeyFile, []byte(hex.EncodeToString(secret) + "\n"), 0o600},
	}, admin...))
}

// Issue makes NAME.crt and NAME.key in dir for a node: valid for the DNS name
// "baton" and for hosts (names or IP addresses), as server and as client.
// dir must hold ca.crt and ca.key. It overwrites nothing. A name has 1 to 63
// letters, digits, dots, dashes and underscores, and begins with a letter or
// digit; ca, admin and cluster are taken.
func Issue(dir, name string, hosts []string) error { return issueAt(dir, name, hosts, time.Now()) }

func issueAt(dir, name string, hosts []string, now time.Time) error {
	if err := checkName(name); err != nil {
		return err
	}
	signer, err := loadAuthority(dir, now)
	if err != nil {
		return err
	}
	files, err := signer.issue(RoleNode, name, hosts, now)
	if err != nil {
		return err
	}
	return writeAll(dir, files)
}

// authority can sign.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func loadAuthority(dir string, now time.Time) (*authority, error) {
	cert, err := loadCA(dir, now)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, caName+keySuffix)
	data, err := read(path, "certificates are issued where `baton pki init` was run; run it there and copy the files")
	if err != nil {
		return nil, err
	}
	key, err := parseKey(path, data)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fault(Mismatched, path, "%s is not the key of %s; they come from two clusters", path, caName+certSuffix)
	}
	return &authority{cert: cert, key: key}, nil
}

// issue makes a certificate and its key for one role and name.
func (a *authority) issue(role Role, name string, hosts []string, now time.Time) ([]newFile, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	der, err := a.certify(role, name, hosts, &key.PublicKey, now)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, fault(Invalid, "", "cannot encode the key of %q: %v", name, err)
	}
	return []newFile{
		{name + certSuffix, encodeCert(der), 0o644},
		{name + keySuffix, keyPEM, 0o600},
	}, nil
}

// certify makes a certificate for the holder of a key.
func (a *authority) certify(role Role, name string, hosts []string, key *ecdsa.PublicKey, now time.Time) ([]byte, error) {
	notAfter := now.Add(leafLife)
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	leaf := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{roleURI(role, name)},
	}
	if role == RoleNode {
		// Only nodes are servers: an operator's certificate without this name
		// and usage cannot pose as one.
		leaf.ExtKeyUsage = append(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		leaf.DNSNames = []string{ServerName}
		if err := addHosts(leaf, hosts); err != nil {
			return nil, err
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, key, a.key)
	if err != nil {
		return nil, fault(Invalid, "", "cannot make a certificate for %q: %v", name, err)
	}
	return der, nil
}

// addHosts sorts hosts into addresses and names.
func addHosts(leaf *x509.Certificate, hosts []string) error {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
			continue
		}
		if !isHostname(h) {
			return fault(Invalid, "", "%q is neither an IP address nor a host name; give it without port or scheme", h)
		}
		if h != ServerName {
			leaf.DNSNames = append(leaf.DNSNames, h)
		}
	}
	return nil
}

// isHostname accepts dotted labels of letters, digits and dashes (RFC 1123).
func isHostname(h string) bool {
	if h == "" || len(h) > 253 {
		return false
	}
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !isAlphanumeric(c) && c != '-' {
				return false
			}
		}
	}
	return true
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// checkName reports why name cannot be a node's: it becomes two files' names
// and part of a URI.
func checkName(name string) error {
	bad := func(why string) error {
		return fault(Invalid, "", "%q cannot be a node's name: %s; use 1 to %d letters, digits, dots, dashes and underscores, such as node-1", name, why, nameBytesMax)
	}
	if name == "" {
		return bad("it is empty")
	}
	if len(name) > nameBytesMax {
		return bad("it is too long")
	}
	if !isAlphanumeric(name[0]) {
		return bad("it must begin with a letter or digit")
	}
	for i := range len(name) {
		if c := name[i]; !isAlphanumeric(c) && c != '.' && c != '-' && c != '_' {
			return bad("it has other characters")
		}
	}
	switch strings.ToLower(name) {
	case caName, adminName, "cluster":
		return bad("that name is taken by the cluster's own files")
	}
	return nil
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fault(Invalid, "", "cannot make a key: %v", err)
	}
	return key, nil
}

// newSerial is 127 random bits (RFC 5280 wants a positive number of at most 20
// bytes).
func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}
