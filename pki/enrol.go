package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// Enrolled reports whether dir holds a certificate for name already.
func Enrolled(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name+certSuffix))
	return err == nil
}

// Request is a certificate request (PKCS #10, DER) for node name, with the key
// NAME.key in dir. The key is made if there is none; if there is, a former attempt
// made it, and the same request comes of it.
func Request(dir, name string) ([]byte, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	key, err := ownKey(dir, name)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fault(Invalid, "", "cannot make a certificate request: %v", err)
	}
	return der, nil
}

func ownKey(dir, name string) (*ecdsa.PrivateKey, error) {
	path := filepath.Join(dir, name+keySuffix)
	data, err := read(path, "")
	if err == nil {
		return parseKey(path, data)
	}
	if KindOf(err) != Missing {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault(Unreadable, dir, "cannot make %s: %v", dir, err)
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, fault(Invalid, "", "cannot encode the key of %q: %v", name, err)
	}
	return key, replace(dir, newFile{name + keySuffix, keyPEM, 0o600})
}

// RequestKey checks a request and returns the hash of its public key, by which a
// request that comes again is known. BAD_REQUEST: it is none, or its sender does
// not hold the key.
func RequestKey(request []byte) (hash []byte, err error) {
	key, err := requestKey(request)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	sum := sha256.Sum256(der)
	return sum[:], err
}

func requestKey(request []byte) (*ecdsa.PublicKey, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the certificate request cannot be used: %v", err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the certificate request is not for an ECDSA key on P-256")
	}
	return key, nil
}

// CanSign reports whether dir holds the authority's key, so that Sign works.
func CanSign(dir string) bool {
	_, err := loadAuthority(dir, time.Now())
	return err == nil
}

// Sign makes node name's certificate (DER) for the key of a request, as Issue does.
// Nothing else of the request counts. dir must hold ca.key. host may be empty.
func Sign(dir, name, host string, request []byte) ([]byte, error) {
	if err := CheckRequest(name, host); err != nil {
		return nil, err
	}
	key, err := requestKey(request)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	signer, err := loadAuthority(dir, now)
	if err != nil {
		return nil, err
	}
	return signer.certify(RoleNode, name, hostList(host), key, now)
}

// CheckRequest reports whether a certificate can be made for that name and host.
func CheckRequest(name, host string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return addHosts(&x509.Certificate{}, hostList(host))
}

func hostList(host string) []string {
	if host == "" {
		return nil
	}
	return []string{host}
}

// Secret is the content of cluster.key, for a node that joins.
func (id *Identity) Secret() []byte { return append([]byte(nil), id.secret...) }

// Enrol writes what a node got for its request: ca.crt as the handshake cs brought
// it, cluster.key, and last NAME.crt. Before, it checks that all belong together.
// Files that are there already must be the same.
func (t JoinToken) Enrol(dir, name string, cs tls.ConnectionState, certificate, secret []byte) error {
	ca, err := t.verify(cs)
	if err != nil {
		return err
	}
	key, err := ownKey(dir, name)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(certificate)
	if err != nil {
		return fault(Unreadable, "", "the cluster sent a certificate that cannot be read: %v", err)
	}
	if err := checkLeaf("the certificate that the cluster sent", ca, cert, RoleNode, name, time.Now()); err != nil {
		return err
	}
	if !key.PublicKey.Equal(cert.PublicKey) || len(secret) != clusterKeyBytes || checkValue(secret) != ca.Subject.SerialNumber {
		return fault(Mismatched, "", "what the cluster sent does not belong together: ask for another token")
	}
	for _, f := range []newFile{
		{caName + certSuffix, encodeCert(ca.Raw), 0o644},
		{clusterKeyFile, []byte(hex.EncodeToString(secret) + "\n"), 0o600},
		{name + certSuffix, encodeCert(cert.Raw), 0o644},
	} {
		if err := add(dir, f); err != nil {
			return err
		}
	}
	return nil
}

// add makes a file that is not there, and refuses to change one that is.
func add(dir string, f newFile) error {
	path := filepath.Join(dir, f.name)
	have, err := read(path, "")
	switch {
	case KindOf(err) == Missing:
		return replace(dir, f)
	case err != nil:
		return err
	case string(have) != string(f.data):
		return fault(Exists, path, "%s is of another cluster; give --pki another directory", path)
	}
	return nil
}

// replace makes a file whole or not at all, whenever the process dies.
func replace(dir string, f newFile) error {
	temp := filepath.Join(dir, f.name+".new")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault(Unreadable, temp, "cannot remove %s: %v", temp, err)
	}
	if err := writeAll(dir, []newFile{{f.name + ".new", f.data, f.mode}}); err != nil {
		return err
	}
	if err := os.Rename(temp, filepath.Join(dir, f.name)); err != nil {
		return fault(Unreadable, temp, "cannot rename %s: %v", temp, err)
	}
	return syncDir(dir)
}
