package pki

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// Identity is who this process is in its cluster: the authority it trusts, its
// own certificate, and the cluster's secret. But for the certificate, which
// Refresh reads anew, it is immutable.
type Identity struct {
	dir    string
	name   string
	role   Role
	ca     *x509.Certificate
	pool   *x509.CertPool
	cert   atomic.Pointer[tls.Certificate]
	secret []byte // nil for an operator
}

// Load reads a node's identity from dir: ca.crt, cluster.key, NAME.crt and
// NAME.key. An error is an *Error whose kind and message say which file is
// missing, foreign, expired or mismatched.
func Load(dir, name string) (*Identity, error) { return loadAt(dir, name, time.Now()) }

func loadAt(dir, name string, now time.Time) (*Identity, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	id, err := loadLeaf(dir, RoleNode, name, now)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, clusterKeyFile)
	data, err := read(path, "copy it from where `baton pki init` was run")
	if err != nil {
		return nil, err
	}
	if id.secret, err = parseClusterKey(path, data); err != nil {
		return nil, err
	}
	if checkValue(id.secret) != id.ca.Subject.SerialNumber {
		return nil, fault(Mismatched, path, "%s is not of the cluster of %s; copy both from where `baton pki init` was run", path, caName+certSuffix)
	}
	return id, nil
}

// LoadAdmin reads an operator's identity from dir: ca.crt, admin.crt and
// admin.key. It has no ClusterKey.
func LoadAdmin(dir string) (*Identity, error) {
	return loadLeaf(dir, RoleAdmin, adminName, time.Now())
}

func loadLeaf(dir string, role Role, name string, now time.Time) (*Identity, error) {
	ca, err := loadCA(dir, now)
	if err != nil {
		return nil, err
	}
	hint := "issue it with `baton pki issue " + dir + " --name " + name + "` where the authority's key is, and copy it here"
	if role == RoleAdmin {
		hint = "copy it from where `baton pki init` was run"
	}
	certPath := filepath.Join(dir, name+certSuffix)
	data, err := read(certPath, hint)
	if err != nil {
		return nil, err
	}
	cert, err := parseCert(certPath, data)
	if err != nil {
		return nil, err
	}
	if err := checkLeaf(certPath, ca, cert, role, name, now); err != nil {
		return nil, err
	}
	keyPath := filepath.Join(dir, name+keySuffix)
	if data, err = read(keyPath, hint); err != nil {
		return nil, err
	}
	key, err := parseKey(keyPath, data)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fault(Mismatched, keyPath, "%s is not the key of %s; %s", keyPath, certPath, hint)
	}
	id := &Identity{dir: dir, name: name, role: role, ca: ca, pool: x509.NewCertPool()}
	id.pool.AddCert(ca)
	id.cert.Store(&tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert})
	return id, nil
}

// loadCA reads the authority's certificate.
func loadCA(dir string, now time.Time) (*x509.Certificate, error) {
	path := filepath.Join(dir, caName+certSuffix)
	data, err := read(path, "make a cluster's files with `baton pki init "+dir+"`, copy them from where that was done, or name their directory (--pki, BATON_PKI)")
	if err != nil {
		return nil, err
	}
	ca, err := parseCert(path, data)
	if err != nil {
		return nil, err
	}
	if !ca.IsCA || !bytes.Equal(ca.RawIssuer, ca.RawSubject) || ca.CheckSignatureFrom(ca) != nil {
		return nil, fault(Foreign, path, "%s is not a cluster's authority; copy the one that `baton pki init` made", path)
	}
	if err := checkTime(path, ca, now); err != nil {
		return nil, err
	}
	return ca, nil
}

// checkLeaf tells apart what the handshake would later refuse with one alert.
func checkLeaf(path string, ca, cert *x509.Certificate, role Role, name string, now time.Time) error {
	if cert.CheckSignatureFrom(ca) != nil {
		return fault(Foreign, path, "%s was not issued by the authority in %s; both must come from one `baton pki init`", path, caName+certSuffix)
	}
	if err := checkTime(path, cert, now); err != nil {
		return err
	}
	gotRole, gotName := roleOfCert(cert)
	if gotRole != role || gotName != name {
		return fault(Foreign, path, "%s is the certificate of %s, not of %s; issue one under that name instead of renaming files", path, describe(gotRole, gotName), describe(role, name))
	}
	return nil
}

func checkTime(path string, cert *x509.Certificate, now time.Time) error {
	if now.After(cert.NotAfter) {
		return fault(Expired, path, "%s expired on %s; renew it with `baton pki renew` where the authority's key is, and copy it here (or set this machine's clock right: it says %s)",
			path, cert.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if now.Before(cert.NotBefore) {
		return fault(Expired, path, "%s is not valid before %s; set this machine's clock right: it says %s",
			path, cert.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// Name is the node's, or "admin".
func (id *Identity) Name() string { return id.name }

// Role is RoleNode or RoleAdmin.
func (id *Identity) Role() Role { return id.role }

// Fingerprint is the SHA-256 of the authority's certificate: it names the
// cluster until that has an id.
func (id *Identity) Fingerprint() []byte {
	sum := sha256.Sum256(id.ca.Raw)
	return sum[:]
}

// ClusterKey derives 32 bytes from the cluster's secret (HKDF, RFC 5869). Each
// purpose gets a key of its own; the same on all nodes. It is nil for an
// operator, who does not have the secret.
func (id *Identity) ClusterKey(purpose string) []byte {
	if id.secret == nil {
		return nil
	}
	return derive(id.secret, "baton key: "+purpose)
}

// zeroKey is a key of generation 0 of the ring.
func (id *Identity) zeroKey(purpose string) []byte {
	return id.ClusterKey(purpose + ", generation 0")
}

// purposeReset is followed by a node's id.
const purposeReset = "stateless reset of "

// ResetKey tells the former peers of the node with that id that it has forgotten
// them. It is the node's own, and the same after a restart, whatever the ring
// says. Were it shared, any node would end the living connections of another for
// whoever has seen one of their packets (RFC 9000, 21.11). It must not be called
// for an operator, who has no cluster secret.
func (id *Identity) ResetKey(node string) [32]byte {
	return [32]byte(id.zeroKey(purposeReset + node))
}

// checkValue is safe to publish: HKDF of 256 random bits tells nothing of them.
func checkValue(secret []byte) string {
	return hex.EncodeToString(derive(secret, "baton check value")[:16])
}

func derive(secret []byte, info string) []byte {
	key, err := hkdf.Key(sha256.New, secret, nil, info, 32)
	if err != nil {
		// Only a length over 255 hashes can fail, and it is a constant.
		panic("pki: " + err.Error())
	}
	return key
}

// roleURI is how a certificate says what its holder is.
func roleURI(role Role, name string) *url.URL {
	return &url.URL{Scheme: "baton", Host: string(role), Path: "/" + name}
}

// roleOfCert reads it back. A certificate with none, or with more than one
// name of this scheme, has no role.
func roleOfCert(cert *x509.Certificate) (Role, string) {
	role, name := RoleNone, ""
	for _, u := range cert.URIs {
		if u.Scheme != "baton" {
			continue
		}
		if role != RoleNone {
			return RoleNone, ""
		}
		switch Role(u.Host) {
		case RoleNode:
			role = RoleNode
		case RoleAdmin:
			role = RoleAdmin
		default:
			return RoleNone, ""
		}
		name = strings.TrimPrefix(u.Path, "/")
	}
	return role, name
}

func describe(role Role, name string) string {
	switch role {
	case RoleNode:
		return "node " + name
	case RoleAdmin:
		return "operator " + name
	}
	return "nobody in a cluster"
}
