package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Renew issues the certificates of the named nodes in dir anew, or all there if
// none is named, "admin" among them: the same role, hosts and key for another five
// years, or as long as the authority lasts. So only NAME.crt changes: the key need
// not be here, and the file is copied over the former one on the node's host, which
// takes it up by itself. dir must hold ca.crt and ca.key. Where the key is lost or
// leaked, Issue makes a new one.
func Renew(dir string, names ...string) error { return renewAt(dir, names, time.Now()) }

func renewAt(dir string, names []string, now time.Time) error {
	signer, err := loadAuthority(dir, now)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		if names, err = leafNames(dir, signer.cert); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := signer.renew(dir, name, now); err != nil {
			return err
		}
	}
	return nil
}

// leafNames are those whose certificates in dir are of the authority.
func leafNames(dir string, ca *x509.Certificate) (names []string, err error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, fault(Unreadable, dir, "cannot list %s: %v", dir, err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), certSuffix)
		if !ok || e.IsDir() || name == caName {
			continue
		}
		path := filepath.Join(dir, e.Name())
		data, err := read(path, "")
		if err != nil {
			return nil, err
		}
		if cert, err := parseCert(path, data); err == nil && cert.CheckSignatureFrom(ca) == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

func (a *authority) renew(dir, name string, now time.Time) error {
	path := filepath.Join(dir, name+certSuffix)
	data, err := read(path, "issue it with `baton pki issue "+dir+" --name "+name+"`")
	if err != nil {
		return err
	}
	old, err := parseCert(path, data)
	if err != nil {
		return err
	}
	role, holder := roleOfCert(old)
	key, ours := old.PublicKey.(*ecdsa.PublicKey)
	if old.CheckSignatureFrom(a.cert) != nil || role == RoleNone || holder != name || !ours {
		return fault(Foreign, path, "%s was not issued by the authority in %s for that name, so it cannot be renewed", path, dir)
	}
	var hosts []string
	if role == RoleNode {
		hosts = slices.Clone(old.DNSNames)
		for _, ip := range old.IPAddresses {
			hosts = append(hosts, ip.String())
		}
	}
	der, err := a.certify(role, name, hosts, key, now)
	if err != nil {
		return err
	}
	return replace(dir, newFile{name + certSuffix, encodeCert(der), 0o644})
}

// Refresh takes up a certificate that was put in the place of the loaded one since,
// for all connections from then on, and reports whether there was one. An error
// leaves the one in use: the files are missing, being copied, or of no use.
func (id *Identity) Refresh() (bool, error) { return id.refreshAt(time.Now()) }

func (id *Identity) refreshAt(now time.Time) (bool, error) {
	path := filepath.Join(id.dir, id.name+certSuffix)
	data, err := read(path, "the certificate that was loaded from it is used on; put a valid one there")
	if err != nil {
		return false, err
	}
	cert, err := parseCert(path, data)
	if err != nil || bytes.Equal(cert.Raw, id.cert.Load().Leaf.Raw) {
		return false, err
	}
	fresh, err := loadLeaf(id.dir, id.role, id.name, now)
	if err != nil {
		return false, err
	}
	if !fresh.ca.Equal(id.ca) {
		return false, fault(Foreign, path, "%s is of another authority than this process was started with; start it again, with all others of the cluster", path)
	}
	id.cert.Store(fresh.cert.Load())
	return true, nil
}

// NotAfter is when the certificate in use ends, and when its authority does.
func (id *Identity) NotAfter() (leaf, authority time.Time) {
	return id.cert.Load().Leaf.NotAfter, id.ca.NotAfter
}

// serverCert and clientCert are asked at each handshake, for Refresh's sake.
func (id *Identity) serverCert(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return id.cert.Load(), nil
}

func (id *Identity) clientCert(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return id.cert.Load(), nil
}
