package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	pemCert = "CERTIFICATE"
	pemKey  = "PRIVATE KEY"
)

// newFile is a file to be made.
type newFile struct {
	name string
	data []byte
	mode fs.FileMode
}

// writeAll makes all the files, or none: on an error it removes those that it
// made. It overwrites nothing.
func writeAll(dir string, files []newFile) (err error) {
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				_ = os.Remove(path)
			}
		}
	}()
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
		if errors.Is(err, fs.ErrExist) {
			return fault(Exists, path, "%s exists already, and is never overwritten; choose another name or directory, or move it away", path)
		}
		if err != nil {
			return fault(Unreadable, path, "cannot make %s: %v", path, err)
		}
		made = append(made, path)
		_, err = out.Write(f.data)
		err = errors.Join(err, out.Sync(), out.Close())
		if err != nil {
			return fault(Unreadable, path, "cannot write %s: %v", path, err)
		}
	}
	return syncDir(dir)
}

// syncDir makes the names durable too: keys that vanish with the power would
// take the cluster's identity with them.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fault(Unreadable, dir, "cannot open %s: %v", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fault(Unreadable, dir, "cannot sync %s: %v", dir, err)
	}
	return nil
}

// read returns a small file's content. hint says how to come by the file.
func read(path, hint string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault(Missing, path, "%s is missing; %s", path, hint)
	}
	if err != nil {
		return nil, fault(Unreadable, path, "cannot open %s: %v", path, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, fileBytesMax+1))
	if err != nil {
		return nil, fault(Unreadable, path, "cannot read %s: %v", path, err)
	}
	if len(data) > fileBytesMax {
		return nil, fault(Unreadable, path, "%s has more than %d bytes: it is not what its name says", path, fileBytesMax)
	}
	return data, nil
}

// parseCert reads exactly one certificate.
func parseCert(path string, data []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != pemCert || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fault(Unreadable, path, "%s does not hold one PEM certificate; restore it or issue it anew", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fault(Unreadable, path, "%s does not hold a certificate (%v); restore it or issue it anew", path, err)
	}
	return cert, nil
}

// parseKey reads exactly one ECDSA private key.
func parseKey(path string, data []byte) (*ecdsa.PrivateKey, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != pemKey || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fault(Unreadable, path, "%s does not hold one PEM private key; restore it or issue it anew", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fault(Unreadable, path, "%s does not hold a private key (%v); restore it or issue it anew", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fault(Unreadable, path, "%s holds a %T, not an ECDSA key; issue it anew", path, parsed)
	}
	return key, nil
}

// parseClusterKey reads the secret's hex, which may end in a newline.
func parseClusterKey(path string, data []byte) ([]byte, error) {
	text := bytes.TrimSpace(data)
	secret := make([]byte, clusterKeyBytes)
	if hex.DecodedLen(len(text)) != clusterKeyBytes {
		return nil, fault(Unreadable, path, "%s does not hold %d bytes in hex; copy it again from where the cluster's files were made", path, clusterKeyBytes)
	}
	if _, err := hex.Decode(secret, text); err != nil {
		return nil, fault(Unreadable, path, "%s does not hold hex (%v); copy it again from where the cluster's files were made", path, err)
	}
	return secret, nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}
