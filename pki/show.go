package pki

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// CertInfo is one certificate, for people.
type CertInfo struct {
	Name        string    `json:"name"`
	Role        Role      `json:"role"`
	Hosts       []string  `json:"hosts"`
	NotAfter    time.Time `json:"not_after"`
	Fingerprint string    `json:"fingerprint"` // SHA-256, hex
	// Problem says why the certificate would not be accepted; empty if it would.
	Problem string `json:"problem,omitempty"`
}

// Show lists the certificates in dir by file name, the authority's too. One
// that is of no use is listed with its problem; only a directory without a
// usable authority is an error.
func Show(dir string) ([]CertInfo, error) { return showAt(dir, time.Now()) }

func showAt(dir string, now time.Time) ([]CertInfo, error) {
	ca, err := loadCA(dir, now)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, fault(Unreadable, dir, "cannot list %s: %v", dir, err)
	}
	var infos []CertInfo
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), certSuffix)
		if !ok || e.IsDir() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		info := CertInfo{Name: name, Hosts: []string{}}
		data, err := read(path, "")
		if err != nil {
			info.Problem = err.Error()
			infos = append(infos, info)
			continue
		}
		cert, err := parseCert(path, data)
		if err != nil {
			info.Problem = err.Error()
			infos = append(infos, info)
			continue
		}
		sum := sha256.Sum256(cert.Raw)
		info.Fingerprint = hex.EncodeToString(sum[:])
		info.NotAfter = cert.NotAfter.UTC()
		info.Role, _ = roleOfCert(cert)
		info.Hosts = append(info.Hosts, cert.DNSNames...)
		for _, ip := range cert.IPAddresses {
			info.Hosts = append(info.Hosts, ip.String())
		}
		if cert.IsCA && cert.Equal(ca) {
			info.Role = RoleCA
		} else if err := checkLeaf(path, ca, cert, info.Role, name, now); err != nil {
			info.Problem = err.Error()
		}
		infos = append(infos, info)
	}
	return infos, nil
}
