"""The demo's feature views: define once, fresh a few milliseconds after each commit."""

from headrace.features import Entity, Events, FeatureView, Float64, Int64, String, Table, col, count, last, latest, sum_

customer = Entity("customer", join_keys={"customer_id": Int64})
product = Entity("product", join_keys={"product_id": Int64})

customer_profile = FeatureView(
    "customer_profile",
    entity=customer,
    source=Table("shop.customers"),
    entity_key={"customer_id": "id"},
    features=[latest("city", String), latest("tier", String)],
)

customer_orders = FeatureView(
    "customer_orders",
    entity=customer,
    source=Table("shop.orders"),
    event_time="placed_at",
    where=col("status") != "cancelled",
    features=[
        count(over=["1m", "10m"], name="orders"),
        sum_("total", Float64, over=["1m", "10m"], name="spent"),
        count(name="orders_ever"),
        sum_("total", Float64, name="spent_ever"),
        latest("status", String, name="last_status"),
    ],
)

customer_views = FeatureView(
    "customer_views",
    entity=customer,
    source=Events("Product Viewed"),
    entity_key={"customer_id": "event.key"},
    features=[
        count(over=["1m", "10m"], name="views"),
        count(name="views_ever"),
        last("product_id", 3, Int64, name="last_viewed"),
        count("recommendationId", name="followed_ever"),
    ],
)

customer_recommendations = FeatureView(
    "customer_recommendations",
    entity=customer,
    source=Events("Recommended", kind="record"),
    entity_key={"customer_id": "event.key"},
    features=[
        latest("items.0", Int64, name="first"),
        latest("items.1", Int64, name="second"),
        count(name="recommended_ever"),
    ],
)

product_sales = FeatureView(
    "product_sales",
    entity=product,
    source=Table("shop.order_items"),
    event_time="added_at",
    features=[sum_("quantity", Int64, over="1m", name="units_1m"), sum_("quantity", Int64, name="units_ever")],
)
