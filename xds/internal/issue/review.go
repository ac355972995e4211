package issue

import (
	"context"
	"fmt"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/typed/authentication/v1"
	"k8s.io/client-go/rest"

	"millrace.dev/millrace/internal/identity"
)

// Claims of a token that is bound to a Pod, as the API server shows them.
const (
	podClaim  = "authentication.kubernetes.io/pod-name"
	nodeClaim = "authentication.kubernetes.io/node-name"
)

// cluster is the API server.
type cluster struct{ reviews v1.TokenReviewInterface }

// Cluster returns the Reviewer that asks the API server of a configuration, as often
// as there is something to ask: the server's own limits hold.
func Cluster(c *rest.Config) (Reviewer, error) {
	c = rest.CopyConfig(c)
	c.QPS = -1
	client, err := v1.NewForConfig(c)
	if err != nil {
		return nil, err
	}
	return cluster{client.TokenReviews()}, nil
}

// Review asks whose a token is.
func (c cluster) Review(ctx context.Context, token string) (Subject, error) {
	r, err := c.reviews.Create(ctx, &authv1.TokenReview{
		Spec: authv1.TokenReviewSpec{Token: token, Audiences: []string{identity.Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return Subject{}, err
	}
	if !r.Status.Authenticated {
		return Subject{}, fmt.Errorf("%w: %.300s", ErrToken, r.Status.Error)
	}
	return Subject{
		User: r.Status.User.Username, Audiences: r.Status.Audiences,
		Pod: claim(r.Status.User.Extra[podClaim]), Node: claim(r.Status.User.Extra[nodeClaim]),
	}, nil
}

// claim returns a claim that has one value.
func claim(values authv1.ExtraValue) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}
