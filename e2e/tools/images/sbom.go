package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The parts of an SPDX 2.3 document that we have something to say in.
type spdx struct {
	Version       string             `json:"spdxVersion"`
	License       string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	Creation      spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Relationships []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID        string         `json:"SPDXID"`
	Name      string         `json:"name"`
	Version   string         `json:"versionInfo,omitempty"`
	Location  string         `json:"downloadLocation"`
	Analyzed  bool           `json:"filesAnalyzed"`
	Concluded string         `json:"licenseConcluded"`
	Declared  string         `json:"licenseDeclared"`
	Copyright string         `json:"copyrightText"`
	Checksums []spdxChecksum `json:"checksums,omitempty"`
	Refs      []spdxRef      `json:"externalRefs,omitempty"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

// bill returns an image's bill of materials; its sum, of all files but the bill, makes
// the document's name unique.
func billOf(image, sum string, components []component) ([]byte, error) {
	const nothing = "NOASSERTION" // the licence texts lie beside it, unread by us
	root := spdxPackage{ID: "SPDXRef-image", Name: image, Location: nothing, Concluded: nothing, Declared: nothing, Copyright: nothing}
	doc := spdx{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: image,
		Namespace:     "https://millrace.dev/spdx/" + image + "/" + sum,
		Creation:      spdxCreation{Created: epoch.Format(time.RFC3339), Creators: []string{"Tool: millrace-images"}},
		Packages:      []spdxPackage{root},
		Relationships: []spdxRelationship{{"SPDXRef-DOCUMENT", "DESCRIBES", root.ID}},
	}
	sorted := slices.SortedFunc(slices.Values(components), func(a, b component) int {
		return strings.Compare(a.purl()+a.SHA256, b.purl()+b.SHA256)
	})
	for i, c := range slices.Compact(sorted) {
		p := spdxPackage{
			ID: fmt.Sprintf("SPDXRef-%d-%s", i, notID.ReplaceAllString(c.Kind+"-"+c.Name, "-")), Name: c.Name, Version: c.Version,
			Location: nothing, Concluded: nothing, Declared: nothing, Copyright: nothing,
			Refs: []spdxRef{{"PACKAGE-MANAGER", "purl", c.purl()}},
		}
		if c.SHA256 != "" {
			p.Checksums = []spdxChecksum{{"SHA256", c.SHA256}}
		}
		doc.Packages = append(doc.Packages, p)
		doc.Relationships = append(doc.Relationships, spdxRelationship{root.ID, "CONTAINS", p.ID})
	}
	b, err := json.MarshalIndent(doc, "", " ")
	return append(b, '\n'), err
}

// notID is what an SPDX identifier can't have.
var notID = regexp.MustCompile(`[^a-zA-Z0-9.-]+`)

// purl is the component's package URL.
func (c component) purl() string {
	name := strings.ReplaceAll(url.PathEscape(c.Name), "%2F", "/")
	switch {
	case c.Kind == "deb":
		return "pkg:deb/debian/" + name + "@" + url.QueryEscape(c.Version) + "?distro=debian-12"
	case c.Version == "":
		return "pkg:" + c.Kind + "/" + name
	}
	return "pkg:" + c.Kind + "/" + name + "@" + url.QueryEscape(c.Version)
}
